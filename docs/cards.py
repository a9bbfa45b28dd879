"""Write the method cards, the list of all papers and the ledger while the site is built.

Their contents come from the catalogue, the docstrings of the method files and the ledger.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from trueup import papers
from trueup.lab import ledger
from trueup.lab._engine import StudyRef
from trueup.lab._outcomes import outcome_words
from trueup.lab.report._phrases import FIDELITY, ORIGIN
from trueup.studies import _lookup as lookup

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from conformance import estimators, layers, optimizers

# What became of the code since a verdict was published.
SINCE = {
    "published": "",
    "certified": "; the code was rewritten since, and computes the same to the last bit",
    "stale": "; the code has changed since",
}

# The limits by design that a case of the conformance suite declares for a layer.
LAYERS = {
    "approximate_backward": "the gradient is approximate: {}",
    "once_differentiable": "the gradient cannot be differentiated again: {}",
    "parametrization": "{}",
    "bounded": "an infinite input gives a finite output: {}",
    "keeps_output": "the output may not be changed in place: {}",
    "one_sample": "a training batch must hold {}",
    "stateful": "training changes its state: {}",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the cards into the navigation, where mkdocs.yml says `Methods`."""
    cards: list[Any] = ["methods/index.md"]
    cards += [{paper.slug: f"methods/{paper.slug}.md"} for paper in _available()]
    config.nav = [{"Methods": cards} if "Methods" in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    entries = ledger.read()
    files.append(File.generated(config, "methods/index.md", content=_index(entries)))
    files.append(File.generated(config, "ledger.md", content=_ledger(entries)))
    for paper in _available():
        content = _card(paper, entries.get(paper.slug))
        files.append(File.generated(config, f"methods/{paper.slug}.md", content=content))
    return files


def _available() -> list[papers.Paper]:
    return [paper for paper in papers.CATALOGUE if paper.state == "available"]


def _index(entries: dict[str, Any]) -> str:
    lines = [
        "# Methods",
        "",
        "The fifty papers in the catalogue's order. Those that are available have a card. "
        "[What the reference values mean](../index.md#fidelity); [what a verdict is worth](../protocol.md).",
        "",
        "| paper | verdict at desk scale | the problem it treats | area | reference values |",
        "| --- | --- | --- | --- | --- |",
    ]
    for paper in papers.CATALOGUE:
        name = f"[{paper.slug}]({paper.slug}.md)" if paper.state == "available" else paper.slug
        if paper.slug in entries:
            verdict = outcome_words(entries[paper.slug]["verdict"]["outcome"], "desk")
        else:
            verdict = "not published yet" if paper.state == "available" else "planned"
        fidelity = paper.fidelity if paper.state == "available" else ""
        lines.append(f"| {name} | {verdict} | {paper.problem} | {paper.area} | {fidelity} |")
    return "\n".join(lines) + "\n"


def _ledger(entries: dict[str, Any]) -> str:
    text = (
        "Verdicts at desk scale, computed from stored runs and published by `trueup ledger publish`. "
        "[The protocol](protocol.md) defines them. *Certified*: the code was rewritten since and gives the "
        "same to the last bit. `trueup ledger evidence SLUG` shows the evidence of a verdict."
    )
    return f"# The ledger\n\n{text}\n\n{ledger.full_table(entries, papers.CATALOGUE)}\n"


def _card(paper: papers.Paper, entry: dict[str, Any] | None) -> str:
    where = f"{paper.venue} {paper.year}" if paper.venue else f"{paper.year}"
    parts = [
        f"# {paper.slug}",
        f"**{paper.title}**  \n{paper.authors}. {where}. [arXiv {paper.arxiv}]({paper.url})",
        f"*The problem:* {paper.problem}.",
        "## How to use it",
        f"```python\nimport torch, trueup\n\n{paper.usage}\n```",
        "## Claims and verdicts",
        _verdicts(paper, entry),
        "## Fidelity",
        f"`{paper.fidelity}`: {FIDELITY[paper.fidelity]}. Checked against {paper.reference}.",
    ]
    if paper.reconstructed:
        parts.append("!!! warning\n    The equations of this method are a reconstruction.")
    modules = {inspect.getmodule(_resolve(name)): None for name in paper.names}
    parts.append("## The idea, and where we depart from the official code")
    for module in modules:
        headline, _, text = inspect.cleandoc(getattr(module, "__doc__", None) or "").partition("\n")
        parts += [f"### {headline.rstrip('.')}", text.strip()]
    parts += ["## Exceptions", _exceptions(paper), "## Reference"]
    parts += [f"::: {name}" for name in paper.names]
    return "\n\n".join(parts) + "\n"


def _resolve(name: str) -> Any:
    area, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(area), attribute)


def _verdicts(paper: papers.Paper, entry: dict[str, Any] | None) -> str:
    again = f"`trueup run {paper.slug}` tests the claims on your machine"
    if entry is None:
        parts = [
            _claim(c.name, "", c.primary, c.origin, c.statement)
            for c in StudyRef("module", paper.study).load().claims
        ]
        return "\n\n".join([f"No verdict is published yet; {again}.", *parts])
    verdict, scope = entry["verdict"], entry["scope_sentence"].rstrip(".")
    # entries published before a verdict had details have the scope beside it
    details = verdict.get("details") or [f"{scope[:1].upper()}{scope[1:]}."] * bool(scope)
    parts = [" ".join([f"**{verdict['sentence']}**", *details])]
    for claim in entry["claims"]:
        text = " ".join(filter(None, (claim["sentence"], claim["control_sentence"], *claim["details"])))
        parts.append(_claim(claim["name"], claim["outcome"], claim["primary"], claim["origin"], text))
    tried, provenance = len(entry["protocols"]), entry["provenance"]
    since = SINCE[lookup.standing(paper, {paper.slug: entry})]
    parts.append(
        f"Protocols tried: {tried}. Published {provenance['date'][:10]} with torch {provenance['torch']}"
        f"{since}. {again}; [the protocol](../protocol.md) says what a verdict is worth."
    )
    return "\n\n".join(parts)


def _claim(name: str, outcome: str, primary: bool, origin: str, text: str) -> str:
    """Return a line with the claim's kind and outcome, and below it its statement or its result."""
    word = outcome and f"*{outcome_words(outcome, 'desk')}*"
    head = [f"**{name}**", word, "primary" if primary else "secondary", ORIGIN[origin]]
    return f"{' · '.join(filter(None, head))}  \n{text}"


def _exceptions(paper: papers.Paper) -> str:
    """Return what the conformance cases of the paper's names declare, with the reasons given there."""
    lines: list[str] = []
    for name in paper.names:
        short = name.rpartition(".")[2]
        cases = [case for case in layers.CASES if short in (case.kind.__name__, _parametrization(case))]
        for trait, words in LAYERS.items():
            found = {getattr(case, trait) for case in cases} - {""}
            lines += [f"- `{short}`: {words.format(reason)}." for reason in sorted(found)]
        for case in optimizers.CASES:
            if case.optimizer.__name__ == short and case.skips_nonfinite:
                lines.append(
                    f"- `{short}`: a gradient that is not finite is skipped: {case.skips_nonfinite}."
                )
        if short in estimators.CASES:
            failed = estimators.CASES[short].expected_failed_checks
            for reason in sorted(set(failed.values())):
                checks = ", ".join(f"`{check}`" for check, why in failed.items() if why == reason)
                lines.append(f"- `{short}` on scikit-learn's own data, {checks}: the check {reason}.")
    suite = (
        "One suite of tests asks the same of every layer, optimizer and estimator here: right gradients, "
        "`torch.func`, `torch.compile` and export, half precision, any memory layout, empty batches, copies "
        "and checkpoints; of estimators, all that scikit-learn checks. "
    )
    return suite + (
        "By design it is excepted that:\n\n" + "\n".join(lines) if lines else "Nothing is excepted."
    )


def _parametrization(case: layers.Case) -> str:
    """The parametrisation that a layer was given, if any."""
    found = getattr(case.layer(), "parametrizations", {})
    return type(found["weight"][0]).__name__ if "weight" in found else ""
