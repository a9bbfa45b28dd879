"""The type that `trueup.data.load` returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table, a set of images or a text, with what you need to use and cite it.

    Attributes:
        name: the name under which it was loaded.
        X: samples in rows: float64 tables `(n, features)`; uint8 images `(n, height, width)`; the bytes
            `(n,)` of a text.
        y: int64 labels `(n,)` that index `target_names`, or `None` where there are no labels.
        feature_names: one name per column of a table; empty for images.
        target_names: one name per class; empty where there are no labels.
        n_train: number of rows in the training part of the official split, which come first; `None` where
            there is no official split.
        title: what the set holds, in one line.
        licence: the terms of use.
        source: the package or publication that it comes from.
        sha256: digest of the values, dtypes and shapes of `X` and `y`; it enters a study's fingerprint.
    """

    name: str
    X: NDArray[Any]
    y: NDArray[np.int64] | None
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    n_train: int | None
    title: str
    licence: str
    source: str
    sha256: str

    def __repr__(self) -> str:
        classes = f", {len(self.target_names)} classes" if self.y is not None else ""
        shape = " x ".join(map(str, self.X.shape))
        return f"Dataset({self.name!r}: {shape} {self.X.dtype}{classes}; {self.licence})"


def content_sha256(X: NDArray[Any], y: NDArray[Any] | None) -> str:
    """Hash values, dtypes and shapes; the digest is the same on every machine and for any memory layout."""
    digest = hashlib.sha256()
    for array in (X, y):
        if array is None:
            digest.update(b"none")
        else:
            portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{portable.dtype.str}{portable.shape}".encode())
            digest.update(portable.tobytes())
    return digest.hexdigest()
