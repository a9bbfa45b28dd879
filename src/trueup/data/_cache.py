"""Load data sets: those included in packages, and those fetched before, from the cache folder."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from trueup._atomic_write import atomic_write
from trueup.data._dataset import Dataset, content_sha256
from trueup.data._decoding import Arrays
from trueup.data._sets import Pin, find


def cache_folder() -> Path:
    """Return the folder of fetched sets: `TRUEUP_DATA` if set, else the user's cache folder."""
    if folder := os.environ.get("TRUEUP_DATA"):
        return Path(folder).expanduser().absolute()
    try:
        import platformdirs
    except ImportError as error:
        raise ImportError(
            "finding the cache folder needs platformdirs: run `pip install 'trueup[data]'`, "
            "or name a folder in the environment variable TRUEUP_DATA"
        ) from error
    return platformdirs.user_cache_path("trueup") / "data"


def is_ready(name: str) -> bool:
    """Return whether `load` works without a fetch.

    Raises:
        ValueError: for an unknown name.
    """
    pin = find(name)
    return pin.included or _decoded_file(pin).exists()


def load(name: str) -> Dataset:
    """Load a data set. The arrays may be changed in place.

    Args:
        name: a key of `trueup.data.SETS`: `digits`, `breast-cancer`, `wine`, `roman-cups` and
            `apache-licence` work at once; `fashion-mnist`, `mnist`, `forensic-glass`, `pottery` and
            `python-manual` after one `trueup.data.fetch`.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
        FileNotFoundError: if the set has not been fetched; the message names the command.
        RuntimeError: if the cached copy is damaged; the message names the command.

    Example:
        >>> load("roman-cups")
        Dataset('roman-cups': 47 x 11 float64; published measurements (facts); cite Baxter et al. 2005)
        >>> load("fashon-mnist")
        Traceback (most recent call last):
        ValueError: unknown data set 'fashon-mnist': did you mean 'fashion-mnist'? Known: ...
    """
    pin = find(name)
    if pin.included:
        return checked(pin, pin.sources[0].decode({}))
    path = _decoded_file(pin)
    if not path.exists():
        raise FileNotFoundError(
            f"data set {name!r} has not been fetched yet ({pin.sources[0].megabytes:g} MB, licence "
            f"{pin.licence}): run `trueup data fetch {name}`"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return checked(pin, (arrays["X"], arrays.get("y")))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RuntimeError(
            f"the cached copy of {name!r} is damaged ({path}: {error}): run `trueup data fetch {name}`, "
            "which replaces it"
        ) from error


def checked(pin: Pin, arrays: Arrays) -> Dataset:
    """Make a data set of arrays; raise ValueError unless they are the pinned ones."""
    X, y = arrays
    digest = content_sha256(X, y)
    if digest != pin.sha256:
        raise ValueError(
            f"{pin.name}: content {X.dtype}{X.shape} has sha256 {digest}, the pin says {pin.sha256}"
        )
    return Dataset(
        name=pin.name,
        X=X,
        y=y,
        feature_names=pin.feature_names,
        target_names=pin.target_names,
        n_train=pin.n_train,
        title=pin.title,
        licence=pin.licence,
        source=str(pin.sources[0]),
        sha256=digest,
    )


def store(pin: Pin, arrays: Arrays) -> None:
    """Write decoded arrays to the cache."""
    X, y = arrays
    named = {"X": X} if y is None else {"X": X, "y": y}
    atomic_write(_decoded_file(pin), lambda file: np.savez(file, allow_pickle=False, **named))


def _decoded_file(pin: Pin) -> Path:
    # The name holds the digest, so that a changed pin never reads an older copy.
    return cache_folder() / f"{pin.name}-{pin.sha256[:12]}.npz"
