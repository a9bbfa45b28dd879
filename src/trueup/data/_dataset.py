"""What `trueup.data.load` returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table or a set of pictures, with what one must know to use and to cite it.

    Attributes:
        name: the name it was asked by.
        X: samples in rows: float64 tables ``(n, features)``, uint8 pictures ``(n, height, width)``; of a
            text, its bytes ``(n,)``.
        y: int64 labels ``(n,)`` that index ``target_names``; None where the set has no labels.
        feature_names: a name a column of a table; empty for pictures.
        target_names: a name a class; empty where there are no labels.
        n_train: where the set has an official split, the first ``n_train`` rows are its training part and
            the rest its test part; None otherwise.
        title: what the set holds, in a line.
        licence: under which terms it may be used.
        source: the package or publication it was taken from.
        sha256: digest of ``X`` and ``y`` (values, types and shapes), which enters a study's fingerprint.
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
    """Digest of values, dtypes and shapes: the same on every machine, however the arrays were packed."""
    digest = hashlib.sha256()
    for array in (X, y):
        if array is None:
            digest.update(b"none")
        else:
            portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{portable.dtype.str}{portable.shape}".encode())
            digest.update(portable.tobytes())
    return digest.hexdigest()
