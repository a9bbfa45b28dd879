"""Writes the method cards while the site is built: a page a paper with a method, and the list of all fifty.

Everything on a card comes from where it is kept: the catalogue, the method file's docstrings, the ledger.
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

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from conformance import estimators, layers

FIDELITY = {
    "official": "equal to the values of the official code",
    "independent": "equal to another trusted implementation",
    "derived": "equal to a closed form, or brute force, of the paper's equations",
    "reconstructed": "the paper's equations could not be confirmed",
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
        "The fifty papers in the catalogue's order. Each one that is available has a card.",
        "",
        "| paper | the problem it treats | room | reference values | verdict at desk scale |",
        "| --- | --- | --- | --- | --- |",
    ]
    for paper in papers.CATALOGUE:
        name = f"[{paper.slug}]({paper.slug}.md)" if paper.state == "available" else paper.slug
        if paper.slug in entries:
            verdict = entries[paper.slug]["verdict"]["outcome"]
        else:
            verdict = "not published yet" if paper.state == "available" else "planned"
        lines.append(f"| {name} | {paper.problem} | {paper.room} | {paper.fidelity} | {verdict} |")
    return "\n".join(lines) + "\n"


def _card(paper: papers.Paper, entry: dict[str, Any] | None) -> str:
    where = f"{paper.venue} {paper.year}" if paper.venue else f"{paper.year}"
    parts = [
        f"# {paper.slug}",
        f"**{paper.title}**  \n{paper.authors}. {where}. [arXiv {paper.arxiv}]({paper.url})",
        f"*The problem:* {paper.problem}.",
        "## How to use it",
        f"```python\n{paper.usage}\n```",
        "## Claims and verdicts",
        _verdicts(paper, entry),
        "## Fidelity",
        f"`{paper.fidelity}`: {FIDELITY[paper.fidelity]}. Held against {paper.reference}.",
    ]
    if paper.fidelity == "reconstructed":
        parts.append("!!! warning\n    The equations of this method are a reconstruction.")
    modules = {inspect.getmodule(_resolve(name)): None for name in paper.names}
    parts.append("## The idea, and where we depart from the official code")
    for module in modules:
        headline, _, text = inspect.cleandoc(getattr(module, "__doc__", None) or "").partition("\n")
        parts += [f"### {headline.rstrip('.')}", text.strip()]
    parts += ["## What the conformance suite excepts", _traits(paper), "## Reference"]
    parts += [f"::: {name}" for name in paper.names]
    return "\n\n".join(parts) + "\n"


def _resolve(name: str) -> Any:
    room, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(room), attribute)


def _verdicts(paper: papers.Paper, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return f"No verdict is published yet. `trueup run {paper.slug}` tests the claims on your machine."
    lines = [
        f"**{entry['verdict']['sentence']}** {entry['scope_sentence']}".strip(),
        "",
        "| claim | origin | verdict | in a sentence |",
        "| --- | --- | --- | --- |",
    ]
    for claim in entry["claims"]:
        words = " ".join(filter(None, (claim["sentence"], claim.get("control_sentence")))).replace("|", "\\|")
        name = f"**{claim['name']}**" if claim["primary"] else claim["name"]
        lines.append(f"| {name} | {claim['origin'].replace('_', ' ')} | {claim['outcome']} | {words} |")
    tried = len(entry["protocols"])
    lines += [
        "",
        f"Primary claims are bold. Protocols tried: {tried}. Published {entry['provenance']['date'][:10]} "
        f"with torch {entry['provenance']['torch']}. `trueup run {paper.slug}` tests them on your machine; "
        "[the protocol](../protocol.md) says what a verdict is worth.",
    ]
    return "\n".join(lines)


def _traits(paper: papers.Paper) -> str:
    """What the conformance cases of the paper's names declare, with the reasons given there."""
    lines: list[str] = []
    for name in paper.names:
        short = name.rpartition(".")[2]
        for trait in ("approximate_backward", "once_differentiable", "parametrization", "stateful"):
            found = {getattr(case, trait) for case in layers.CASES if case.kind.__name__ == short} - {""}
            lines += [f"- `{short}`, {trait.replace('_', ' ')}: {reason}." for reason in sorted(found)]
        if short in estimators.CASES:
            failed = estimators.CASES[short].expected_failed_checks
            for reason in sorted(set(failed.values())):
                checks = ", ".join(f"`{check}`" for check, why in failed.items() if why == reason)
                lines.append(f"- `{short}` on scikit-learn's own data, {checks}: the check {reason}.")
    if not lines:
        return "Nothing: every name passes the whole suite as it stands."
    return "Everything else passes as it stands.\n\n" + "\n".join(lines)
