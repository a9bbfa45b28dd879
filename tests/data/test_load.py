"""Loading: what is included works offline, and what is returned is what the table pins."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trueup import data
from trueup.data._dataset import content_sha256

INCLUDED = [name for name, pin in data.SETS.items() if pin.included]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUEUP_DATA", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", INCLUDED)
def test_included_sets_work_at_once_and_match_their_description(name):
    pin = data.SETS[name]
    loaded = data.load(name)
    assert data.is_ready(name)
    assert loaded.X.shape == (pin.n, *pin.shape)
    if pin.shape:
        assert loaded.X.dtype == np.float64
        assert len(loaded.feature_names) == loaded.X.shape[1] == len(set(loaded.feature_names))
    assert loaded.sha256 == pin.sha256
    if loaded.y is None:
        assert loaded.target_names == ()
    else:
        assert loaded.y.dtype == np.int64
        assert sorted(set(loaded.y)) == list(range(len(loaded.target_names)))


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "digits"])
def test_names_are_those_of_scikit_learn(name):
    import sklearn.datasets

    theirs = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    ours = data.load(name)
    np.testing.assert_array_equal(ours.X, theirs.data)
    np.testing.assert_array_equal(ours.y, theirs.target)
    assert list(ours.feature_names) == list(theirs.feature_names)
    assert list(ours.target_names) == [str(target) for target in theirs.target_names]


def test_roman_cups_are_compositions_without_zeros():
    cups = data.load("roman-cups")
    assert (cups.X > 0).all()
    assert np.all(np.abs(cups.X.sum(axis=1) - 100) < 1)
    assert cups.feature_names[0] == "Si"
    assert cups.X[0, 0] == 75.2


def test_the_included_text_is_the_licence_byte_by_byte():
    text = data.load("apache-licence").X
    assert text.dtype == np.uint8
    licence = Path(__file__).parents[2] / "LICENSE"
    assert text.tobytes() == licence.read_bytes()


@pytest.mark.parametrize("name", ["wine", "apache-licence"])
def test_arrays_are_the_callers_own(name):
    data.load(name).X[:] = 0
    assert data.load(name).X.max() > 0


def test_repr_says_what_it_is_and_its_licence():
    assert repr(data.load("wine")) == "Dataset('wine': 178 x 13 float64, 3 classes; CC BY 4.0)"


@pytest.mark.parametrize("name", [name for name in data.SETS if name not in INCLUDED])
def test_a_set_not_fetched_names_the_command(name):
    assert not data.is_ready(name)
    with pytest.raises(FileNotFoundError, match=f"run `trueup data fetch {name}`"):
        data.load(name)


@pytest.mark.parametrize("function", [data.load, data.fetch, data.is_ready])
def test_unknown_name_suggests_the_nearest(function):
    with pytest.raises(ValueError, match=r"unknown data set 'fashion_mnist': did you mean 'fashion-mnist'\?"):
        function("fashion_mnist")


def test_digest_sees_values_types_shapes_and_labels():
    X, y = np.arange(6.0), np.arange(6)
    changed = X.copy()
    changed[0] = np.nextafter(0.0, 1.0)
    variants = [(X, y), (X, None), (changed, y), (X.reshape(2, 3), y), (X.astype(">f4"), y), (X, y[::-1])]
    assert len({content_sha256(*variant) for variant in variants}) == len(variants)
    assert content_sha256(X.astype(">f8"), y) == content_sha256(X, y)
    assert content_sha256(np.arange(12.0)[::2] / 2, y) == content_sha256(X, y)


def test_import_reads_nothing_heavy():
    code = (
        "import trueup.data, sys\n"
        "print([m for m in ('sklearn', 'pandas', 'rdata', 'torch', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cache_folder_needs_no_variable(monkeypatch):
    monkeypatch.delenv("TRUEUP_DATA")
    assert data.cache_folder().is_absolute()
    assert "trueup" in str(data.cache_folder())


def test_cache_folder_without_platformdirs_names_the_extra(monkeypatch):
    monkeypatch.delenv("TRUEUP_DATA")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(ImportError, match=r"pip install 'trueup\[data\]'"):
        data.cache_folder()
