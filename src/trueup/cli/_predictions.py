"""Read a model's predictions and labels from .npz, .npy, .csv and .parquet files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kind", "Predictions", "read_predictions"]

Kind = Literal["logits", "probs"]

LABELS = ("labels", "label", "target", "targets", "y")
KINDS: dict[str, Kind] = {"logits": "logits", "probs": "probs", "probabilities": "probs"}
FORMATS = (".npz", ".npy", ".csv", ".parquet")


class Predictions(NamedTuple):
    """Values `(N, C)`, or `(N,)` for a binary problem, with their kind, and labels `(N,)`.

    A table's columns are in the order of the classes.
    """

    values: NDArray[np.floating[Any]]
    kind: Kind
    target: NDArray[np.integer[Any]]
    columns: tuple[str, ...] = ()


def read_predictions(path: Path, labels: Path | None = None, kind: Kind | None = None) -> Predictions:
    """Read predictions and their labels.

    Args:
        path: a `.npz` with `logits` or `probs` and `labels`; a `.npy` of shape (N, C) or (N,); or a `.csv` or
            `.parquet` table with a column `label` and one column per class. If names of columns start with
            "logit" or "prob", only these are read. Columns that end in a number are taken in its order.
        labels: a file with the labels alone, where `path` has none.
        kind: the kind of values; by default it follows from the names, or, without names, from the values:
            rows within [0, 1] that sum to 1 are probabilities.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a missing or non-numeric column, or labels that are no integers.
    """
    values, named, found, columns = _read(path)
    if values.ndim not in (1, 2):
        raise ValueError(
            f"{path}: predictions must be (N, C) or (N,); got shape {values.shape}: flatten the positions "
            "into rows, as values.transpose(0, 2, 3, 1).reshape(-1, C) does for (N, C, H, W)"
        )
    if labels is not None:
        found = _read_labels(labels)
    if found is None:
        raise ValueError(f"{path} has no labels ({', '.join(LABELS)}): name a file of them with --labels")
    target = np.asarray(found).reshape(-1)
    if target.dtype.kind == "f" and np.isfinite(target).all() and (target == np.rint(target)).all():
        target = target.astype(np.int64)  # a table holds integers as floats if another row is empty
    if target.dtype.kind not in "iub":
        raise ValueError(
            f"labels must be integers from 0 to the number of classes - 1; got {target.dtype}: renumber them"
        )
    if len(values) != len(target):
        raise ValueError(f"{path} has {len(values)} predictions, but there are {len(target)} labels")
    if len(values) == 0:
        raise ValueError(f"{path} has no predictions: give one row per sample")
    return Predictions(values, kind or named or _kind_of(values), target.astype(np.int64), columns)


def _read(path: Path) -> tuple[NDArray[Any], Kind | None, NDArray[Any] | None, tuple[str, ...]]:
    """Return values, the kind that their name says, labels and columns, as far as the file has them."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: predictions are read from {', '.join(FORMATS)}; got {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".npy":
        return _numeric(path, _load(path)), None, None, ()
    if path.suffix == ".npz":
        with _load(path) as file:
            names = list(file.files)
            name = next((name for name in KINDS if name in names), None)
            if name is None:
                raise ValueError(f"{path} must hold an array `logits` or `probs`; got {_listed(names)}")
            label = next((label for label in LABELS if label in names), None)
            return _numeric(path, file[name]), KINDS[name], None if label is None else file[label], ()
    frame = _read_table(path)
    label = next((label for label in LABELS if label in frame.columns), None)
    # pandas writes an index as a column without a name, and reads it as "Unnamed: 0".
    rest = [str(name) for name in frame.columns if name != label and not str(name).startswith("Unnamed: ")]
    named = {
        kind: [column for column in rest if column.lower().startswith(prefix)]
        for kind, prefix in (("logits", "logit"), ("probs", "prob"))
    }
    kind = next((kind for kind, columns in named.items() if columns), "")
    columns = named.get(kind, rest)
    if not columns:
        raise ValueError(f"{path} has no columns of predictions; got {_listed(list(frame.columns))}")
    if text := [column for column in columns if frame[column].dtype.kind not in "iuf"]:
        raise ValueError(
            f"{path}: column {text[0]!r} is not numeric: name the columns of predictions logit_0, logit_1, "
            "... or prob_0, prob_1, ..., and other columns are ignored"
        )
    columns = _in_order_of_classes(path, columns)
    values = frame[columns].to_numpy(np.float64)
    values = values[:, 0] if len(columns) == 1 else values
    return values, KINDS.get(kind), None if label is None else frame[label].to_numpy(), tuple(columns)


def _in_order_of_classes(path: Path, columns: list[str]) -> list[str]:
    """Return the columns sorted by the numbers at their ends, or as they are if they have none."""
    numbers = {column: int(found[0]) for column in columns if (found := re.search(r"\d+$", column))}
    if not numbers or len(columns) == 1:
        return columns
    first = min(numbers.values())
    if sorted(numbers.values()) != list(range(first, first + len(columns))):
        raise ValueError(
            f"{path}: the columns {_listed(columns)} are not numbered one after the other, so that their "
            "classes are unknown: name the columns of predictions logit_0, logit_1, ... or prob_0, prob_1, "
            "..., and other columns are ignored"
        )
    return sorted(columns, key=numbers.__getitem__)


def _read_labels(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".npy":
        return np.asarray(_load(path))
    if path.suffix == ".npz":
        with _load(path) as file:
            names = list(file.files)
            name = next((name for name in LABELS if name in names), None)
            if name is None:
                raise ValueError(
                    f"{path} must hold an array of labels ({', '.join(LABELS)}); got {_listed(names)}"
                )
            return np.asarray(file[name])
    frame = _read_table(path)
    name = next((name for name in LABELS if name in frame.columns), None)
    if name is None and len(frame.columns) > 1:
        raise ValueError(
            f"{path} must have a column of labels ({', '.join(LABELS)}); got {_listed(list(frame.columns))}"
        )
    return np.asarray(frame[name or frame.columns[0]].to_numpy())


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} cannot be read as a NumPy file of numbers: save it with np.savez or np.save"
        ) from None


def _read_table(path: Path) -> Any:
    import pandas as pd

    if path.suffix == ".csv":
        try:
            return pd.read_csv(path)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV file with a header line: {error}") from None
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow: pip install 'trueup[parquet]'") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None


def _numeric(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: predictions must be numbers; got {values.dtype}")
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _kind_of(values: NDArray[Any]) -> Kind:
    within = bool(((values >= 0) & (values <= 1)).all())
    if values.ndim > 1:
        within &= bool((np.abs(values.sum(1) - 1) < 1e-3).all())
    return "probs" if within else "logits"


def _listed(names: list[Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"
