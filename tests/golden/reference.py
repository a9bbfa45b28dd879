"""Reference values: read a ``<slug>.npz``, hand a case to its adapter, compare every value.

A file holds arrays under ``<case>.<role>.<name>`` and a JSON map ``cases`` from case to kind and tolerances.
The roles ``in``, ``param`` and ``hyper`` are what an adapter gets; all other keys are what it must return.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Adapter = Callable[["Case"], Mapping[str, object]]

ADAPTERS = Path(__file__).parent / "adapters"
GIVEN = {"in": "inputs", "param": "params", "hyper": "hyper"}


class Mismatch(AssertionError):
    """An adapter is missing, or what it returned is not the reference value."""


@dataclass(frozen=True)
class Case:
    """The parts of a case that an adapter may look at: never the case's name.

    ``inputs`` and ``params`` hold numpy arrays; ``hyper`` holds Python numbers, booleans and strings, and
    arrays where a hyperparameter is one.
    """

    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    hyper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """One case of one file, with the values that it must give."""

    slug: str
    name: str
    kind: str
    rtol: float
    atol: float
    case: Case
    expected: dict[str, np.ndarray]

    def __str__(self) -> str:
        return f"{self.slug}/{self.name}"


def read(path: Path) -> list[Reference]:
    """All cases of one file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    described = json.loads(str(arrays.pop("cases")))
    arrays.pop("meta", None)

    cases = {name: Case() for name in described}
    expected: dict[str, dict[str, np.ndarray]] = {name: {} for name in described}
    for key, value in arrays.items():
        name, role, rest = key.split(".", 2)
        if name not in described:
            raise Mismatch(f"{path.name}: the key {key} belongs to no case in `cases`")
        if role == "hyper":
            cases[name].hyper[rest] = value.item() if value.ndim == 0 else value
        elif role in GIVEN:
            getattr(cases[name], GIVEN[role])[rest] = value
        else:
            expected[name][f"{role}.{rest}"] = value
    return [
        Reference(path.stem, name, about["kind"], about["rtol"], about["atol"], cases[name], expected[name])
        for name, about in described.items()
    ]


def kinds(slug: str, adapters: Path = ADAPTERS) -> dict[str, Adapter]:
    """The adapters of one file: ``KINDS`` of ``adapters/<slug with underscores>.py``."""
    path = adapters / f"{slug.replace('-', '_')}.py"
    if not path.exists():
        raise Mismatch(f"{slug}.npz has no adapters: write {path} with KINDS = {{kind: function}}")
    spec = importlib.util.spec_from_file_location(f"golden_adapters_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KINDS


def check(reference: Reference, adapters: Mapping[str, Adapter]) -> None:
    """Run the case's adapter and compare every reference key; all differences are reported at once."""
    if reference.kind not in adapters:
        raise Mismatch(f"no adapter for kind {reference.kind!r}; {reference.slug} has {sorted(adapters)}")
    if not reference.expected:
        raise Mismatch(f"{reference} holds no reference value")
    returned = adapters[reference.kind](reference.case)
    wrong = []
    for key, value in reference.expected.items():
        if key not in returned:
            wrong.append(f"{key}: not returned by the adapter")
        elif reason := difference(returned[key], value, reference.rtol, reference.atol):
            wrong.append(f"{key}: {reason}")
    if wrong:
        raise Mismatch(f"{reference} ({reference.kind}):\n  " + "\n  ".join(wrong))


def difference(got: object, want: np.ndarray, rtol: float, atol: float) -> str:
    """Why ``got`` is not the reference value ``want``; empty if it is."""
    if want.dtype.kind == "U" and want.ndim == 0 and str(want)[:1] in ("{", "["):
        parsed = json.loads(got) if isinstance(got, str) else got
        return _structural_difference(parsed, json.loads(str(want)), rtol, atol)

    if isinstance(got, torch.Tensor):
        got = got.detach().cpu()
        got = (got.double() if got.is_floating_point() else got).numpy()
    got = np.asarray(got)
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.dtype.kind == "f":
        if got.dtype.kind not in "fiub":
            return f"values of type {got.dtype}, expected numbers"
        return _numeric_difference(got.astype(np.float64), want.astype(np.float64), rtol, atol)
    if got.dtype.kind in "fiub" and want.dtype.kind in "iub":
        same = got == want
    else:
        same = got.astype(str) == want.astype(str)
    return "" if np.all(same) else f"{_show(got)}, expected exactly {_show(want)}"


def _numeric_difference(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> str:
    close = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    with np.errstate(invalid="ignore"):
        distance = np.where(close, 0.0, np.abs(got - want))
    distance = np.where(np.isnan(distance), np.inf, distance)
    worst = np.unravel_index(distance.argmax(), distance.shape)
    at = f" at {tuple(map(int, worst))}" if want.ndim else ""
    return (
        f"{np.count_nonzero(~close)} of {close.size} values differ; worst{at}: "
        f"{got[worst]!r}, expected {want[worst]!r} (rtol {rtol}, atol {atol})"
    )


def _structural_difference(got: Any, want: Any, rtol: float, atol: float, at: str = "$") -> str:
    if isinstance(want, dict):
        if not isinstance(got, Mapping) or set(got) != set(want):
            return f"{at}: {_show(got)}, expected the keys {sorted(want)}"
        pairs = [(f"{at}.{key}", got[key], want[key]) for key in want]
    elif isinstance(want, list):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            return f"{at}: {_show(got)}, expected {len(want)} items"
        pairs = [(f"{at}[{i}]", g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
    elif isinstance(want, float) and isinstance(got, int | float) and not isinstance(got, bool):
        same = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
        return "" if same else f"{at}: {got!r}, expected {want!r} (rtol {rtol}, atol {atol})"
    else:
        # True == 1 in Python, but a flag is not a count.
        same = got == want and isinstance(got, bool) == isinstance(want, bool)
        return "" if same else f"{at}: {_show(got)}, expected exactly {_show(want)}"
    return next((reason for p, g, w in pairs if (reason := _structural_difference(g, w, rtol, atol, p))), "")


def _show(value: object) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."
