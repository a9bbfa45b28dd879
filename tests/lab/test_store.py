"""The store returns what it was given, writes atomically, and says in every error what to do."""

from __future__ import annotations

import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from trueup.lab._cell import Cell, CellResult
from trueup.lab._store import SCHEMA, Store, StoreError

CELL = Cell(
    "adamp",
    "desk",
    2,
    "report",
    arm="sgd",
    condition=(("batch", 32), ("noise", 0.5), ("order", "random"), ("warm", True)),
    hyper=(("lr", 1.0),),
    seed=2**31 + 5,
)


def result(**changes: object) -> CellResult:
    fields = {
        "status": "ok",
        "numbers": {"accuracy": 0.1 + 0.2, "steps": 40.0},
        "series": {"loss": [1.5, 0.1 + 0.7]},
        "arrays": {
            "image": np.arange(6, dtype=np.uint8).reshape(2, 3),
            "allow_pickle": np.array([[1e-300]]),  # NumPy's keyword, and a fair name
        },
        "seconds": 1.25,
        "cpu_seconds": 0.75,
        "peak_memory": 12345,
        "environment": {"torch": "2.13.0", "threads": "1"},
    }
    return CellResult(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cells.sqlite"


def rows(path: Path, table: str = "cells") -> int:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# -- round trips ---------------------------------------------------------------------------------------------
def test_a_result_comes_back_as_it_went_in(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, result())
    with Store(path, create=False) as store:
        back = store.get("a")
        assert store.get("b") is None
        [(fingerprint, cell, listed)] = store.cells("adamp")
    assert back is not None
    assert vars(back) | {"arrays": {}} == vars(result()) | {"arrays": {}}
    for name, array in result().arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == array.dtype
    assert list(listed.arrays) == ["image", "allow_pickle"]
    assert (fingerprint, cell, cell.key()) == ("a", CELL, CELL.key())
    # 1.0 must not come back as 1, nor True as 1: the key would differ
    assert [type(v) for _, v in (*cell.condition, *cell.hyper)] == [int, float, str, bool, float]


def test_a_series_keeps_its_gaps_without_storing_nan(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, result(series={"loss": [1.0, math.nan, math.inf, 2.0]}))
        loss = store.get("a").series["loss"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(loss, [1.0, math.nan, math.nan, 2.0])
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT series FROM cells").fetchone() == (
            '{"loss": [1.0, null, null, 2.0]}',
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(path: Path, value: float) -> None:
    with Store(path) as store, pytest.raises(ValueError, match=r"accuracy is .*must be finite"):
        store.put("a", CELL, result(numbers={"accuracy": value}))
    assert rows(path) == 0


def test_arrays_of_objects_are_refused_whole(path: Path) -> None:
    with Store(path) as store, pytest.raises(ValueError, match="allow_pickle"):
        store.put("a", CELL, result(arrays={"x": np.array([{}])}))
    assert rows(path) == rows(path, "environments") == 0


def test_the_first_finished_result_stays_and_a_failed_one_gives_way(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, CellResult("failed", error="Traceback one"))
        assert store.get("a").error == "Traceback one"  # type: ignore[union-attr]
        store.put("a", CELL, CellResult("failed", error="Traceback two"))
        assert store.get("a").error == "Traceback two"  # type: ignore[union-attr]
        store.put("a", CELL, result(status="diverged"))
        store.put("a", CELL, result(numbers={"accuracy": 0.0}))
        store.put("a", CELL, CellResult("failed", error="late"))
        kept = store.get("a")
        assert kept is not None
        assert (kept.status, kept.error, kept.numbers) == ("diverged", "", result().numbers)
        assert kept.peak_memory == 12345
    assert rows(path) == 1


def test_environments_are_kept_once(path: Path) -> None:
    with Store(path) as store:
        for i in range(3):
            store.put(f"a{i}", CELL, result())
    with Store(path) as store:  # another run on the same machine
        store.put("b", CELL, result())
        store.put("c", CELL, result(environment={"torch": "2.14.0"}))
        assert store.get("b").environment == result().environment  # type: ignore[union-attr]
        assert store.get("c").environment == {"torch": "2.14.0"}  # type: ignore[union-attr]
    assert rows(path, "environments") == 2


def test_cells_lists_one_study_in_order_across_pages_while_others_are_written(path: Path) -> None:
    with Store(path) as store:
        for i in range(600):
            store.put(f"a{i}", Cell("adamp", "desk", 1, "report", seed=i), CellResult("ok"))
        store.put("s", Cell("adamp", "smoke", 1, "report"), CellResult("ok"))
        store.put("o", Cell("other", "desk", 1, "report"), CellResult("ok"))
        seen = []
        for fingerprint, cell, _ in store.cells("adamp", "desk"):
            seen.append((fingerprint, cell.seed))
            store.put(f"x{cell.seed}", Cell("third", "desk", 1, "report"), CellResult("ok"))
        assert seen == [(f"a{i}", i) for i in range(600)]
        assert len(list(store.cells("adamp"))) == 601
        assert list(store.cells("nothing")) == []
        assert store.studies() == [
            ("adamp", "desk"),
            ("adamp", "smoke"),
            ("other", "desk"),
            ("third", "desk"),
        ]


def test_forget_drops_one_cell(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, result())
        store.put("b", CELL, result())
        store.forget("a")
        store.forget("never there")
        assert store.get("a") is None
        assert store.get("b") is not None


def test_protocols_tried_are_remembered_once_each(path: Path) -> None:
    with Store(path) as store:
        for protocol in (2, 1, 2):
            store.note_protocol("adamp", "desk", protocol)
        store.note_protocol("adamp", "smoke", 7)
        assert store.protocols("adamp", "desk") == [1, 2]
        assert store.protocols("other", "desk") == []


def test_a_moved_store_finds_its_artefacts(tmp_path: Path) -> None:
    with Store(tmp_path / "old" / "s") as store:
        assert store.artefacts == tmp_path / "old" / "s.artefacts"
        store.put("a", CELL, result(path=str(store.artefacts / "a.npz")))
        store.put("b", CELL, result(path="/elsewhere/b.npz"))
        store.put("c", CELL, result())
    (tmp_path / "old").rename(tmp_path / "new")
    with Store(tmp_path / "new" / "s") as store:
        paths = [r.path for _, _, r in store.cells("adamp")]
    assert paths == [str(tmp_path / "new" / "s.artefacts" / "a.npz"), "/elsewhere/b.npz", ""]


# -- refusals ------------------------------------------------------------------------------------------------
def test_a_newer_store_says_upgrade_and_is_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"schema {SCHEMA + 1}.*pip install --upgrade trueup"):
        Store(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("arm,seed,metric\n" * 100)
    with pytest.raises(StoreError, match="is not a store; name another file"):
        Store(path)
    assert path.read_text().startswith("arm,seed")


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match="database of something else"):
        Store(path)
    assert rows(path, "photos") == 0


def test_a_folder_and_a_missing_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is a folder; name a file, such as .*cells\.sqlite"):
        Store(tmp_path)
    with pytest.raises(StoreError, match=r"no store at .*missing.*`trueup run` creates one"):
        Store(tmp_path / "missing", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_path_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot create or open .*file"):
        Store(tmp_path / "file" / "cells.sqlite")


def test_a_damaged_store_is_refused(path: Path) -> None:
    with Store(path) as store:
        for i in range(200):
            store.put(f"a{i}", CELL, result())
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"), Store(path) as store:
        list(store.cells("adamp"))


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_a_truncated_store_is_refused_in_words(path: Path, share: float, readonly: bool) -> None:
    with Store(path) as store:
        for i in range(200):
            store.put(f"a{i}", CELL, result())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if share:
        with pytest.raises(StoreError, match=r"is damaged|is not a store"):
            read_all(path, readonly)
    else:
        assert read_all(path, readonly) == []


def read_all(path: Path, readonly: bool = False) -> list[dict[str, float]]:
    with Store(path, create=False, readonly=readonly) as store:
        store.studies(), store.runs(), store.protocols("adamp", "desk")
        return [result.numbers for _, _, result in store.cells("adamp")]


def test_whatever_byte_is_damaged_no_other_number_is_read(path: Path) -> None:
    numbers = [{"accuracy": 0.123456789 + i} for i in range(20)]
    with Store(path) as store:
        for i, given in enumerate(numbers):
            store.put(f"a{i}", CELL, result(numbers=given))
        store.note_run("adamp", "desk", "module", "trueup.studies.adamp", None)
        store.note_protocol("adamp", "desk", 1)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    lost = refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        at = int(rng.integers(len(content)))
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = read_all(path, readonly=True)
            except StoreError:
                refused += 1
                continue
        assert all(one in numbers for one in found)
        lost += len(found) < len(numbers)
    assert lost > 10
    assert refused > 1


DAMAGE = [
    "UPDATE cells SET numbers = replace(numbers, '0.3', '0.4')",
    "UPDATE cells SET numbers = substr(numbers, 1, 9)",
    "UPDATE cells SET series = '{\"loss\": [1.5, 0.9]}'",
    "UPDATE cells SET arrays = substr(arrays, 1, 300)",
    "UPDATE cells SET arrays = NULL",
    "UPDATE cells SET status = 'diverged'",
    "UPDATE cells SET seed = seed + 1",
    "UPDATE cells SET hyper = '[[\"lr\", 0.1]]'",
    "UPDATE cells SET peak_memory = 'much'",
    "UPDATE cells SET arm = CAST(x'ff' AS TEXT)",
    "UPDATE cells SET artefact = 'other.npz'",
    "UPDATE environments SET document = '{}'",
    "UPDATE cells SET checksum = 'f' || checksum",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_named_never_read_and_replaced(path: Path, damage: str) -> None:
    with Store(path) as store:
        store.put("a", CELL, result())
        store.put("b", CELL, result(environment={"torch": "2.14.0"}))
    with sqlite3.connect(path) as connection:
        connection.execute(f"{damage} WHERE id = 1")
    connection.close()
    with Store(path) as store:
        with pytest.warns(UserWarning, match=r"cells\.sqlite: the stored cell adamp desk .*damaged.*again"):
            assert store.get("a") is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was named once
            assert store.get("a") is None
            assert [fingerprint for fingerprint, _, _ in store.cells("adamp")] == ["b"]
            store.put("a", CELL, result(environment={"torch": "2.15.0"}))
            assert store.get("a").numbers == result().numbers  # type: ignore[union-attr]
            assert {fingerprint for fingerprint, _, _ in store.cells("adamp")} == {"a", "b"}


@pytest.mark.parametrize("damage", ["UPDATE runs SET seeds = 'x'", "UPDATE protocols SET protocol = 'x'"])
def test_a_damaged_record_of_runs_is_refused_in_words(path: Path, damage: str) -> None:
    with Store(path) as store:
        store.note_run("adamp", "desk", "module", "trueup.studies.adamp", 3)
        store.note_protocol("adamp", "desk", 1)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(StoreError, match="is damaged: restore a copy"):
        read_all(path)


# -- schema 1 ------------------------------------------------------------------------------------------------
def to_schema_1(path: Path) -> None:
    """Remove from a store what schema 2 added."""
    with sqlite3.connect(path) as connection:
        connection.executescript("""
            DROP INDEX cells_without_checksum;
            ALTER TABLE cells DROP COLUMN checksum;
            ALTER TABLE cells DROP COLUMN cpu_seconds;
            ALTER TABLE runs DROP COLUMN device;
            PRAGMA user_version = 1;
        """)
    connection.close()


@pytest.fixture
def old(path: Path) -> Path:
    with Store(path) as store:
        for i in range(3):
            store.put(f"a{i}", CELL, result())
        store.note_run("adamp", "desk", "module", "trueup.studies.adamp", None)
    to_schema_1(path)
    return path


def test_a_store_of_schema_1_is_migrateed_and_keeps_its_cells(old: Path) -> None:
    for _ in range(2):
        with Store(old) as store:
            assert store.get("a1").numbers == result().numbers  # type: ignore[union-attr]
            assert store.get("a1").cpu_seconds == 0  # type: ignore[union-attr]
            assert [fingerprint for fingerprint, _, _ in store.cells("adamp")] == ["a0", "a1", "a2"]
            assert [run["device"] for run in store.runs()] == ["cpu"]
    with sqlite3.connect(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM cells WHERE length(checksum) = 64").fetchone() == (3,)
        connection.execute("UPDATE cells SET numbers = '{}' WHERE fingerprint = 'a0'")
    connection.close()
    with Store(old) as store, pytest.warns(UserWarning, match="damaged"):
        assert store.get("a0") is None


def test_a_migrateal_that_is_cut_short_leaves_the_store_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_add_checksums", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store(old)
    assert old.read_bytes() == before
    assert read_all(old) == [result().numbers] * 3


def test_a_store_of_schema_1_is_read_without_being_changed(old: Path) -> None:
    before = old.read_bytes()
    assert read_all(old, readonly=True) == [result().numbers] * 3
    assert old.read_bytes() == before


def test_a_damaged_row_of_schema_1_is_named_and_not_read(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE cells SET numbers = '{\"accuracy' WHERE fingerprint = 'a0'")
        connection.execute("UPDATE cells SET arrays = x'00' WHERE fingerprint = 'a1'")
        connection.execute("UPDATE cells SET arm = CAST(x'ff' AS TEXT) WHERE fingerprint = 'a1'")
    connection.close()
    with pytest.warns(UserWarning, match="damaged"):
        assert read_all(old) == [result().numbers]


def test_rows_that_an_older_trueup_adds_to_a_migrateed_store_are_kept(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, result())
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(cells)")]
        known = ", ".join(c for c in columns if c not in ("id", "fingerprint", "cpu_seconds", "checksum"))
        connection.execute(f"INSERT INTO cells (fingerprint, {known}) SELECT 'b', {known} FROM cells")
    connection.close()
    assert read_all(path) == [result().numbers] * 2


# -- read-only -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_a_finished_store_in_a_folder_that_cannot_be_written_is_read(
    open_folder: Path, mode: int, schema: int
) -> None:
    path = open_folder / "a store #1?.sqlite"
    with Store(path) as store:
        store.put("a", CELL, result())
    if schema == 1:
        to_schema_1(path)
    path.chmod(mode)
    open_folder.chmod(0o555)

    def read() -> None:
        raise StoreError(f"read {read_all(path, readonly=True)}")

    said = without_root(read)
    open_folder.chmod(0o755)
    assert said == f"read {[result().numbers]}"
    assert list(open_folder.iterdir()) == [path]


def test_a_store_that_was_not_closed_in_a_folder_that_cannot_be_written_says_what_to_do(
    open_folder: Path,
) -> None:
    path = open_folder / "cells.sqlite"
    with Store(path) as store:
        store.put("a", CELL, result())
        copies = {file.name: file.read_bytes() for file in open_folder.iterdir()}
    for name, content in copies.items():
        if not name.endswith("-shm"):  # a copied or killed store has none that fits
            (open_folder / name).write_bytes(content)
    open_folder.chmod(0o555)
    said = without_root(lambda: read_all(path, readonly=True))
    open_folder.chmod(0o755)
    assert "was not closed by its last run" in said
    assert "copy it and cells.sqlite-wal into another folder" in said
    assert read_all(path, readonly=True) == [result().numbers]


def test_a_read_only_store_is_read_beside_a_writer_and_refuses_to_write(path: Path) -> None:
    with Store(path) as writer, Store(path, readonly=True) as store:
        writer.put("a", CELL, result())
        assert store.get("a") is not None
        with pytest.raises(StoreError, match="cannot be written"):
            store.put("b", CELL, result())
        with pytest.raises(StoreError, match="cannot be written"):
            store.note_run("adamp", "desk", "module", "trueup.studies.adamp", None)
    assert rows(path) == 1


def test_a_read_only_store_that_is_not_there_is_empty_and_is_not_made(path: Path) -> None:
    with Store(path, readonly=True) as store:
        assert store.get("a") is None
        assert store.runs() == store.studies() == list(store.cells("adamp")) == []
        with pytest.raises(StoreError, match="cannot be written"):
            store.put("a", CELL, result())
    assert not path.parent.exists()
    with pytest.raises(StoreError, match="there is no store at"):
        Store(path, create=False, readonly=True)


def test_the_last_run_of_a_study_is_noted_with_its_device(path: Path) -> None:
    with Store(path) as store:
        store.note_run("adamp", "desk", "module", "trueup.studies.adamp", None)
        store.note_run("adamp", "desk", "module", "trueup.studies.adamp", 5, "cuda")
        [run] = store.runs()
    assert run == {
        "study": "adamp",
        "scale": "desk",
        "kind": "module",
        "name": "trueup.studies.adamp",
        "seeds": 5,
        "device": "cuda",
    }


def test_a_closed_store_refuses(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get("a")


def without_root(action: Callable[[], object]) -> str:
    """Return the StoreError that the action raises in a child process without root rights."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            action()
            message = "no error"
        except StoreError as error:
            message = str(error)
        except BaseException as error:
            message = repr(error)
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode()
    os.waitpid(child, 0)
    return message


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that another user can reach."""
    folder = tmp_path_factory.mktemp("open")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


def test_a_folder_without_write_permission_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    assert "fix the folder's permissions" in without_root(lambda: Store(open_folder / "cells.sqlite"))
    assert "Permission denied" in without_root(lambda: Store(open_folder / "sub" / "cells.sqlite"))
    open_folder.chmod(0o755)
    assert list(open_folder.iterdir()) == []


def test_a_read_only_file_is_refused_before_any_cell_is_run(open_folder: Path) -> None:
    path = open_folder / "cells.sqlite"
    Store(path).close()
    path.chmod(0o444)
    open_folder.chmod(0o555)
    message = without_root(lambda: Store(path))
    open_folder.chmod(0o755)
    assert "permissions" in message
    assert "name another store" in message


def fill(store: Store) -> int:
    """Store cells until the disk is full, and return how many were stored."""
    big = result(arrays={"x": np.random.default_rng(0).integers(0, 256, 60_000, dtype=np.uint8)})
    stored = 0
    full = "the disk is full; cells stored before are safe: free some space"
    with pytest.raises(StoreError, match=full):  # noqa: PT012 (the last put of many is to fail)
        for stored in range(1000):
            store.put(f"a{stored}", CELL, big)
    return stored


def test_a_full_disk_is_an_error_and_loses_nothing(path: Path) -> None:
    with Store(path) as store:
        store._connection.execute(
            "PRAGMA max_page_count = 200"
        )  # SQLite's own limit: same error as a full disk
        stored = fill(store)
        assert stored > 3
        assert store.get(f"a{stored}") is None
        assert store.get(f"a{stored - 1}") is not None
        with pytest.raises(StoreError, match="full"):
            store.put("new", CELL, result(environment={"gone": "with the transaction" * 10_000}))
        store._connection.execute("PRAGMA max_page_count = 100000")
        store.put("new", CELL, result(environment={"gone": "with the transaction" * 10_000}))
        assert store.get("new").environment["gone"]  # type: ignore[union-attr]
    assert rows(path) == stored + 1


def test_a_refused_row_leaves_the_store_ready_for_the_next(path: Path) -> None:
    with Store(path) as store:
        with pytest.raises(StoreError, match="CHECK constraint failed"):
            store.put("a", CELL, result(status="odd", environment={"gone": "too"}))
        store.put("b", CELL, result())
    assert rows(path) == rows(path, "environments") == 1


def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk; the test above covers SQLite's side")
    try:
        path = tmp_path / "cells.sqlite"
        with Store(path) as store:
            stored = fill(store)
            assert stored > 3
        with Store(path) as store:
            assert len(list(store.cells("adamp"))) == stored
        assert rows(path) == stored
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_store_locked_by_another_program_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("trueup.lab._store._BUSY_SECONDS", 0.05)
    with pytest.raises(StoreError, match="another program has kept it locked"):
        Store(path)
    other.close()


def test_a_file_that_another_reads_is_waited_for_when_it_is_first_switched_to_wal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM cells").fetchone()
    with monkeypatch.context() as patch:
        patch.setattr("trueup.lab._store._BUSY_SECONDS", 0.05)
        with pytest.raises(StoreError, match="another program has kept it locked"):
            Store(path)
    release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    release.start()
    with Store(path) as store:
        store.put("a", CELL, result())
    release.join()
    other.close()
    assert rows(path) == 1


# -- several at once -----------------------------------------------------------------------------------------
def _writer(path: Path, start: object, name: str, n: int) -> None:
    start.wait()  # type: ignore[attr-defined]
    with Store(path) as store:
        for i in range(n):
            store.put(f"shared{i}", CELL, result(error=name))
            store.put(f"{name}{i}", CELL, result())


def test_processes_open_and_write_one_store_at_once(path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    start = spawn.Event()
    writers = [spawn.Process(target=_writer, args=(path, start, f"w{k}-", 20)) for k in range(6)]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0] * 6
    assert rows(path) == 20 + 6 * 20
    assert rows(path, "environments") == 1


def test_a_reader_is_not_held_up_by_a_writer_and_a_writer_waits_its_turn(path: Path) -> None:
    with Store(path) as store:
        store.put("a", CELL, result())
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM cells")
        assert store.get("a") is not None
        release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        release.start()
        store.put("b", CELL, result())
        release.join()
        other.close()
        assert [fingerprint for fingerprint, _, _ in store.cells("adamp")] == ["a", "b"]


WRITER = """
import itertools, sys
from trueup.lab._cell import Cell, CellResult
from trueup.lab._store import Store
store = Store(sys.argv[1])
cell = Cell("adamp", "desk", 1, "report")
for i in itertools.count():
    store.put(f"{sys.argv[2]}-{i}", cell, CellResult("ok", {"x": float(i)}))
    print(i, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_cells(path: Path) -> None:
    for attempt, lines in enumerate((1, 17, 40)):
        command = [sys.executable, "-c", WRITER, str(path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                assert writer.stdout.readline()
            writer.kill()
            said = lines + sum(line.endswith("\n") for line in writer.stdout)
        with Store(path) as store:
            for i in range(said):  # what was reported stored is stored
                kept = store.get(f"{attempt}-{i}")
                assert kept is not None
                assert kept.numbers == {"x": i}
    rows(path)
