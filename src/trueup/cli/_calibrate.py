"""`trueup calibrate`: measure calibration, fit calibrators on one split and judge them on another."""

from __future__ import annotations

import json
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich import box
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from trueup.cli._console import console, escape

if TYPE_CHECKING:
    from trueup.calibration import CalibrationReport

# Shown in the terminal and on the page; the page has all columns too.
COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece_{}": "ECE",
    "cwce_{}": "class-wise ECE",
}


class Kind(StrEnum):
    """The kinds of predictions."""

    logits = "logits"
    probs = "probs"


class Method(StrEnum):
    """The calibrators by name."""

    temperature = "temperature"
    vector = "vector"
    matrix = "matrix"
    histogram = "histogram"
    beta = "beta"
    isotonic = "isotonic"
    platt = "platt"


# Matrix scaling has C * (C + 1) parameters, too many for most splits, so that it runs only by name.
DEFAULT = (Method.temperature, Method.vector, Method.histogram, Method.beta, Method.isotonic, Method.platt)


def calibrate(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="A .npz with logits or probs and labels; a .npy; or a .csv or .parquet table with a column "
            "label and one column per class."
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="File of the labels, if the predictions hold none.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Kind of the predictions; by default it follows from names or values.")
    ] = None,
    method: Annotated[
        list[Method] | None,
        typer.Option(help="Calibrator to fit; repeatable. Default: all but matrix."),
    ] = None,
    fit: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Fraction of the rows on which calibrators are fitted.")
    ] = 0.5,
    bins: Annotated[int, typer.Option(min=1, help="Bins of the measures and the diagrams.")] = 15,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder of the page and of the calibrated predictions.")
    ] = Path(),
) -> None:
    """Measure the calibration of a model's predictions, and improve it.

    Calibrators are fitted on one part of the rows and judged on the rest. The one with the best
    cross-validated likelihood on the first part calibrates all rows.

    For example: trueup calibrate predictions.npz --output calibration
    """
    from sklearn.model_selection import cross_val_score

    from trueup.calibration import CalibrationReport
    from trueup.cli._predictions import read_predictions
    from trueup.lab.report import write_calibration

    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: name a folder")
    values, kind_, target, columns = read_predictions(predictions, labels, kind.value if kind else None)
    if columns:
        console.print(f"columns, in the order of the classes: {escape(', '.join(columns))}", style="dim")
    # Checks values and labels before anything is fitted.
    CalibrationReport(values, target, from_logits=kind_ == "logits", n_bins=(bins,))
    logits = values if kind_ == "logits" else _log(values)
    rows, test = _split(target, fit, seed)
    notes: list[str] = []

    def report(predictions: Any, *, from_logits: bool = False) -> CalibrationReport:
        return CalibrationReport(predictions[test], target[test], from_logits=from_logits, n_bins=(bins,))

    reports = {"uncalibrated": report(values, from_logits=kind_ == "logits")}
    scores: dict[str, float] = {}
    fitted: dict[str, Any] = {}
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        for name in method or DEFAULT:
            bar.add_task(f"fitting {name.value}", total=None)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                calibrator = _calibrator(name).fit(logits[rows], target[rows])
                folds = min(5, *np.unique(target[rows], return_counts=True)[1])
                if folds > 1:
                    scores[name.value] = float(
                        np.mean(cross_val_score(_calibrator(name), logits[rows], target[rows], cv=int(folds)))
                    )
            notes += [f"{name.value}: {text}" for text in dict.fromkeys(str(w.message) for w in caught)]
            fitted[name.value] = calibrator
            reports[name.value] = report(calibrator.predict_proba(logits))
    best = max(scores, key=scores.__getitem__) if scores else next(iter(fitted))
    if not scores:
        notes.append(
            "a class has a single row to fit on, so there was no cross-validation: the first is kept"
        )

    noisy = [name for name, report in reports.items() if f"ece_{bins}" in report.dominated_by_noise]
    if noisy:
        notes.append(
            f"the ECE of {', '.join(noisy)} is less than twice what chance gives a calibrated model "
            f"on {len(test):,} rows and {bins} bins, and says little about the model: "
            "take more rows or fewer bins"
        )

    _print(reports, best, bins, len(rows), len(test))
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    stem = output / predictions.name.removesuffix(predictions.suffix)
    page = write_calibration(
        stem.with_name(f"{stem.name}.calibration.html"),
        _document(predictions, reports, best, bins, notes, rows=len(rows), test=len(test)),
    )
    saved = stem.with_name(f"{stem.name}.calibrated.npz")
    _save(saved, fitted[best], logits, target, rows)
    console.print(
        f"\npage: [bold]{escape(str(page))}[/]\ncalibrated by {best}: [bold]{escape(str(saved))}[/]"
    )


def _calibrator(method: Method) -> Any:
    from trueup import calibration

    names = {
        Method.temperature: "TemperatureScaler",
        Method.vector: "VectorScaler",
        Method.matrix: "MatrixScaler",
        Method.histogram: "HistogramCalibrator",
        Method.beta: "BetaCalibrator",
        Method.isotonic: "IsotonicCalibrator",
        Method.platt: "PlattCalibrator",
    }
    return getattr(calibration, names[method])()


def _log(probs: Any) -> Any:
    """Return logits of probabilities; 0 becomes the smallest positive number of the dtype."""
    smallest = np.finfo(probs.dtype).tiny
    log = np.log(np.maximum(probs, smallest))
    return log if probs.ndim > 1 else log - np.log(np.maximum(1 - probs, smallest))


def _split(target: Any, fit: float, seed: int) -> tuple[Any, Any]:
    """Split the rows at random, stratified by class where every class has a row for both parts."""
    from sklearn.model_selection import train_test_split

    n = round(fit * len(target))
    if not 0 < n < len(target):
        raise ValueError(
            f"{len(target)} rows cannot be split into one part to fit on and one to judge on: give more rows"
        )
    counts = np.unique(target, return_counts=True)[1]
    stratify = target if counts.min() > 1 and min(n, len(target) - n) >= len(counts) else None
    rows = train_test_split(np.arange(len(target)), train_size=n, random_state=seed, stratify=stratify)
    return np.sort(rows[0]), np.sort(rows[1])


def _measured(report: CalibrationReport, bins: int) -> dict[str, float]:
    columns = report.to_dict()
    return {
        label: columns[name.format(bins)] for name, label in COLUMNS.items() if name.format(bins) in columns
    }


def _print(reports: dict[str, CalibrationReport], best: str, bins: int, rows: int, test: int) -> None:
    measured = {name: _measured(report, bins) for name, report in reports.items()}
    table = Table(
        title=f"fitted on {rows:,} rows, judged on {test:,} others; {bins} bins",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("calibrator")
    for label in measured["uncalibrated"]:
        table.add_column(label, justify="right")
    for name, values in measured.items():
        table.add_row(name, *(f"{v:.4f}" for v in values.values()), style="bold" if name == best else None)
    console.print(table)


def _document(
    source: Path,
    reports: dict[str, CalibrationReport],
    best: str,
    bins: int,
    notes: list[str],
    *,
    rows: int,
    test: int,
) -> dict[str, Any]:
    """Return what the page shows."""
    return {
        "title": source.name,
        "best": best,
        "bins": bins,
        "notes": notes,
        "rows": rows,
        "test": test,
        "columns": [*_measured(reports["uncalibrated"], bins)],
        "table": {name: _measured(report, bins) for name, report in reports.items()},
        "all": {name: report.to_dict() for name, report in reports.items()},
        "figures": {name: _figure(report, bins) for name, report in reports.items()},
    }


def _figure(report: CalibrationReport, bins: int) -> dict[str, Any]:
    """Return a reliability diagram as JSON for the page, which has a theme of its own."""
    figure = json.loads(report.figure(n_bins=bins).to_json())
    figure["layout"].pop("template", None)
    figure["layout"]["height"] = 420
    return {"data": figure["data"], "layout": figure["layout"]}


def _save(path: Path, calibrator: Any, logits: Any, target: Any, rows: Any) -> None:
    """Write calibrated probabilities, labels, and on which rows the calibrator was fitted."""
    from trueup._atomic_write import atomic_write

    used = np.zeros(len(target), bool)
    used[rows] = True
    arrays = {"probs": calibrator.predict_proba(logits), "labels": target, "fitted_on": used}
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))
