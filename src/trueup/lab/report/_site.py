"""Writing the report: a folder of static pages that opens from disk, and the same numbers as data files.

Every file is written atomically, so that a crash leaves the old or the new page, never half of one. The index
comes last, so that it never links to a missing page.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

import trueup
from trueup._atomic_write import atomic_write
from trueup.lab import _formatting as formatting
from trueup.lab import _sentences as sentences
from trueup.lab._outcomes import ORDER, outcome_words, shown
from trueup.lab.ledger import event_words, q_values, replications, times_published
from trueup.lab.report import _export as export
from trueup.lab.report import _phrases as phrases
from trueup.lab.report import _summaries as summaries
from trueup.lab.report._dots import arms_figure, claim_figure
from trueup.lab.report._forest import ledger_figure
from trueup.lab.report._lines import figure_panels, tuning_figure

Doc: TypeAlias = Mapping[str, Any]

SCALES = ("desk", "paper", "smoke")  # a study's main page shows the first of these that was run
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ReportError(RuntimeError):
    """Raised if the report cannot be written; the message says where and how to fix it."""


def write_report(
    folder: str | os.PathLike[str], outcomes: Sequence[Doc], papers: Sequence[Doc], ledger: Mapping[str, Doc]
) -> Path:
    """Write the ledger and one page per study as static HTML, JSON and CSV.

    Args:
        folder: made if missing. Files of an earlier report are replaced, others left alone.
        outcomes: outcome documents, one per study and scale.
        papers: the catalogue's records as mappings: slug, title, authors, year, arxiv, area, problem, state,
            fidelity, reconstructed, names, usage.
        ledger: slug -> published entry, with its `standing` (`published`, `certified` or `stale`) and, if
            known, every seed's contrast; shown for papers that were not run here.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: if an outcome has no valid slug or scale, or two have the same study and scale.
        ReportError: if the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(folder, outcomes=[], papers=[], ledger={}).name
    'index.html'
    """
    root = Path(folder)
    best, others = _by_study(outcomes)
    published = {slug: entry for slug, entry in ledger.items() if entry}
    q = q_values(published)
    known, own = summaries.ledger_rows(best, papers, published, q)
    rows = {row["slug"]: row for row in [*known, *own]}
    catalogue = {paper["slug"]: paper for paper in papers}
    env = _environment()

    _write_assets(root)
    for slug, row in rows.items():
        if not row["page"]:
            continue
        here = slug in best
        outcome = best[slug] if here else published.get(slug)
        entry = published.get(slug) or {}
        _write_study(env, root, slug, catalogue.get(slug, {}), outcome, row, entry, here=here)
    for outcome in others:
        slug = outcome["slug"]
        stem = f"{slug}.{outcome['scale']}"  # a slug holds no dot, so no other study has this name
        _write_study(env, root, stem, catalogue.get(slug, {}), outcome, rows[slug], {}, here=True)

    everything = [*known, *own]
    _write(root / "data" / "ledger.json", export.to_json(export.ledger_records(everything)))
    _write(root / "data" / "ledger.csv", export.ledger_csv(everything))
    index = root / "index.html"
    page = env.get_template("index.html").render(
        known=known,
        own=own,
        summary=summaries.head(known),
        ran=any(row["source"] for row in everything),
        figure=ledger_figure(everything),
        order=ORDER,
    )
    _write(index, page)
    return index


def write_comparison(path: str | os.PathLike[str], comparison: Doc) -> Path:
    """Write one comparison of a user's own results as a single, self-contained HTML file.

    Args:
        path: the file to write.
        comparison: a claim as outcome documents have it (sentence, outcome, d, mean, low, high, level,
            margin, ...), with `words` (better, cannot tell, ...); for the arms' table also `arms`,
            `metrics`, `conditions` and `cells`; optional `title` and `provenance`.

    Raises:
        ReportError: if the file cannot be written.
    """
    claim = dict(comparison)
    # `scale` is left out: here it is the claim's (difference, log), not that of a study (desk)
    study = summaries.complete(
        {k: v for k, v in claim.items() if k in ("arms", "metrics", "conditions", "cells")}
    )
    page = (
        _environment(inline=True)
        .get_template("comparison.html")
        .render(
            comparison=claim,
            study=study,
            figure=claim_figure({"name": "comparison", "kind": "statistical"} | claim),
            arms=summaries.arms_table(study),
            arm_figures=[(m, arms_figure(study, m)) for m in study["metrics"]],
            provenance=_provenance(claim.get("provenance") or {}),
        )
    )
    target = Path(path)
    _write(target, page)
    return target


def write_calibration(path: str | os.PathLike[str], document: Doc) -> Path:
    """Write the calibration of a user's model as a single, self-contained HTML file.

    Args:
        path: the file to write.
        document: `title`, `best` (name of the calibrator that was chosen), `bins`, `rows` and `test` (numbers
            of rows to fit and to judge on), `notes`, `columns`, and by calibrator `table` (column -> value),
            `all` (measure -> value) and `figures` (plotly JSON).

    Raises:
        ReportError: if the file cannot be written.
    """
    target = Path(path)
    _write(target, _environment(inline=True).get_template("calibration.html").render(document))
    return target


def _by_study(outcomes: Sequence[Doc]) -> tuple[dict[str, Doc], list[Doc]]:
    """Choose the outcome for each study's main page; the others get pages of their own."""
    groups: dict[str, dict[str, Doc]] = {}
    for outcome in outcomes:
        slug, scale = outcome.get("slug"), outcome.get("scale", "desk")
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            raise ValueError(f"an outcome needs a slug of lower-case words joined by hyphens; got {slug!r}")
        if scale not in SCALES:
            raise ValueError(f"{slug}: scale must be one of {', '.join(SCALES)}; got {scale!r}")
        if scale in groups.setdefault(slug, {}):
            raise ValueError(f"two outcomes for {slug} at {scale} scale: pass the current one")
        groups[slug][scale] = outcome
    best: dict[str, Doc] = {}
    others: list[Doc] = []
    for slug, scales in groups.items():
        first, *rest = sorted(scales, key=SCALES.index)
        best[slug] = scales[first]
        others += [scales[scale] for scale in rest]
    return best, others


def _write_study(
    env: Environment,
    root: Path,
    stem: str,
    paper: Doc,
    outcome: Doc | None,
    row: Doc,
    entry: Doc,
    *,
    here: bool,
) -> None:
    """Write a study's page and data; `entry` is its ledger entry, and `here` whether it was run here."""
    study = summaries.complete({"slug": row["slug"]} | dict(outcome or {}))
    q = {claim["name"]: claim.get("q") for claim in row["claims"]}
    claims = [dict(claim) | {"q": q.get(claim["name"], claim.get("q"))} for claim in study["claims"]]
    failed = [c for c in study["cells"] if c.get("status") == "failed"]
    diverged = [c for c in study["cells"] if c.get("status") == "diverged"]
    troubles = bool(failed or diverged or study["failures"])
    drawn = [(spec, figure_panels(spec, study)) for spec in study["figures"]]
    drawn = [(spec, panels) for spec, panels in drawn if panels]
    arms = summaries.arms_table(study)
    tuning = [entry for entry in study["tuning"] if entry["trials"]]
    sections = [
        ("troubles", "Troubles", troubles),
        ("claims", "Claims", study["claims"]),
        ("protocol", "Protocol", True),
        ("arms", "Arms", arms),
        ("figures", "Figures", drawn),
        ("tuning", "Tuning", tuning),
        ("cost", "Cost and provenance", True),
        ("use", "Use it", paper.get("usage") or paper.get("names")),
    ]
    page = env.get_template("study.html").render(
        paper=paper,
        study=study,
        row=row,
        stem=stem,
        ran=outcome is not None,
        here=here,  # or taken from the ledger
        command=_command(study),
        replications=replications(entry) if entry else (),
        history=[(event["date"], event_words(event)) for event in entry.get("history") or ()],
        times_published=times_published(entry) if entry else 0,
        sections=[(anchor, name) for anchor, name, there in sections if there],
        troubles=troubles,
        failed=failed,
        diverged=diverged,
        claims=[(claim, claim_figure(claim, study["scale"])) for claim in claims],
        arms=arms,
        arm_figures=[(m, arms_figure(study, m)) for m in study["metrics"]],
        figures=drawn,
        tuning=tuning,
        tuning_figure=tuning_figure(study),
        provenance=_provenance(study["provenance"]),
    )
    if outcome is not None:
        _write(root / "data" / f"{stem}.json", export.to_json(outcome))
        _write(root / "data" / f"{stem}.csv", export.cells_csv(outcome))
    _write(root / f"{stem}.html", page)


def _command(study: Doc) -> str:
    """Return the command that runs a study again, by its slug or its file."""
    scale = f" --scale {study['scale']}" if study["scale"] != "desk" else ""
    return f"trueup run {shlex.quote(study['target'] or study['slug'])}{scale}"


def _provenance(provenance: Doc) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in provenance.items() if name != "data"]


# -- templates ----------------------------------------------------------------------------------------------
@functools.cache
def _environment(inline: bool = False) -> Environment:
    env = Environment(
        loader=PackageLoader("trueup.lab.report"),
        autoescape=select_autoescape(default=True),
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(
        version=trueup.__version__,
        inline=inline,
        asset=_inline_asset,
        inherit=_inherit,
        control_words=phrases.CONTROLS,
        test_words=phrases.TESTS,
        fidelity_words=phrases.FIDELITY,
        origin_words=phrases.ORIGIN,
    )
    env.filters.update(
        contrast_label=sentences.contrast_label,
        displayed=phrases.displayed,
        divergence_sentence=sentences.divergence_sentence,
        duration=formatting.duration,
        effect=phrases.effect,
        exact_summary=phrases.exact_summary,
        first_author=_first_author,
        margin_text=phrases.margin_text,
        memory=formatting.memory,
        number=formatting.number,
        shown=shown,
        outcome_words=outcome_words,
        pairs=phrases.pairs,
        percent=formatting.percent,
        plural=formatting.plural,
        sentence=_sentence,
        script_json=lambda document: Markup(export.script_json(document)),
        value_text=phrases.value_text,
        warnings=sentences.warnings,
    )
    return env


# characters that change the direction of all text after them, numbers and verdicts included
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def _printed(value: object) -> object:
    """Remove changes of direction from text, and keep a number on the line of its per cent sign."""
    if not isinstance(value, str):
        return value
    value = value.translate(_DIRECTIONS)
    return value if isinstance(value, Markup) else re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", value)


def _inherit(part: Doc, claim: Doc) -> dict[str, Any]:
    """Give a link or control its claim's unit and direction."""
    return {k: claim.get(k) for k in ("scale", "unit", "scale_factor", "higher")} | dict(part)


def _sentence(text: str) -> str:
    """Give a clause a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _first_author(authors: str) -> str:
    names = [name.strip() for name in authors.split(",")]
    return names[0] + (" et al." if len(names) > 1 else "")


# -- assets -------------------------------------------------------------------------------------------------
@functools.cache
def _asset(name: str) -> str:
    """Return the text of a file that pages load."""
    if name == "datatables.js":
        return _datatables()
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _datatables() -> str:
    """Return the DataTables bundle of itables as a classic script: modules cannot be loaded from disk."""
    from importlib.resources import files

    bundle = files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8")
    found = re.search(r"export\s*\{([^}]*)\}", bundle)
    name = found and re.search(r"([\w$]+) as default\b", found[1])
    if not found or not name:
        raise ReportError("this version of itables ships another bundle: pip install 'itables>=2.9,<3'")
    classic = bundle[: found.start()] + f"window.DataTable={name[1]}" + bundle[found.end() :]
    return f"(() => {{\n{classic}\n}})();\n"


def _inline_asset(name: str) -> Markup:
    """Return an asset's text for a `<style>` or `<script>` element, which it must not close."""
    return Markup(_asset(name).replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _write_assets(root: Path) -> None:
    for name in ("report.css", "report.js", "plotly-basic.min.js", "datatables.js"):
        _write(root / "assets" / name, _asset(name))


def _write(path: Path, text: str) -> None:
    # a lone surrogate in a traceback has no UTF-8 form
    content = text.encode("utf-8", errors="replace")
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}; "
            "choose a folder that you may write to, with space left"
        ) from error
