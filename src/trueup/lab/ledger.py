"""The ledger: published desk verdicts, one file shipped with the package.

A verdict enters it by :func:`publish` only, from an outcome that followed the protocol on its published
seeds; :func:`add_replication` notes beside it what fresh seeds said. Functions that take a path use the
shipped file if it is left out.
An entry whose code has changed since is stale, and said to be so wherever it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from trueup.lab.errors import StudyError
from trueup.whole_file import write_whole

FORMAT = 1
MARK = "<!-- ledger -->"
SHIPPED = Path(__file__).parent.parent / "ledger.json"

_CLAIM_FIELDS = (
    *("name", "statement", "origin", "primary", "kind", "outcome", "note", "sentence", "control_sentence"),
    *("survives", "contrast", "mean", "low", "high", "level", "n", "unit", "scale_factor", "scale"),
    *("min_effect", "margin", "test", "pvalue", "look"),
)


class LedgerError(StudyError):
    """An outcome that may not be published, or a ledger that cannot be read or written."""


def read(path: Path | None = None) -> dict[str, Any]:
    """Slug -> entry; empty if nothing is published yet.

    Raises:
        LedgerError: if the file is damaged or written by a newer trueup.
    """
    path = path or SHIPPED
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
        entries: dict[str, Any] = document["entries"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is not a ledger: {error}") from None
    if found > FORMAT:
        raise LedgerError(f"{path} is of format {found}, this trueup reads {FORMAT}: upgrade trueup")
    return entries


def entry(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of an outcome document."""
    provenance = outcome["provenance"]
    return {
        "slug": outcome["slug"],
        "scale": outcome["scale"],
        "protocol": outcome["protocol"],
        "protocols": outcome["protocols"],
        "verdict": outcome["verdict"],
        "scope_sentence": outcome["scope_sentence"],
        "claims": [{k: claim[k] for k in _CLAIM_FIELDS if k in claim} for claim in outcome["claims"]],
        "cost": {k: outcome["cost"][k] for k in ("cells", "cpu_seconds", "stage_seconds", "peak_memory")},
        "provenance": {k: provenance.get(k, "") for k in ("trueup", "torch", "date", "fingerprint")},
        "replications": [],
    }


def publish(outcome: Mapping[str, Any], path: Path | None = None) -> dict[str, Any]:
    """Write an outcome's verdict into the ledger, and return the entry.

    Raises:
        LedgerError: if the outcome is not at desk scale on the protocol's seeds, or is incomplete.
    """
    slug = outcome["slug"]
    if outcome["scale"] != "desk" or not outcome["published"]:
        raise LedgerError(
            f"{slug}: only desk verdicts on the protocol's own seeds are published; this one is at "
            f"{outcome['scale']} scale ({outcome['seeds_note']}): run `trueup run {slug}` first"
        )
    bad = [c["name"] for c in outcome["claims"] if c["outcome"] in ("incomplete", "invalid")]
    if bad or outcome["verdict"]["outcome"] in ("incomplete", "none"):
        raise LedgerError(
            f"{slug}: {', '.join(bad) or 'the verdict'} is incomplete: run `trueup run {slug}` first"
        )
    entries = read(path)
    new = entry(outcome)
    old = entries.get(slug)
    if old is not None:
        tried = {p["protocol"]: p for p in old["protocols"]} | {p["protocol"]: p for p in new["protocols"]}
        new["protocols"] = [tried[n] for n in sorted(tried)]
        if old["provenance"]["fingerprint"] == new["provenance"]["fingerprint"]:
            new["replications"] = old["replications"]
    _write({**entries, slug: new}, path)
    return new


def agreement(published: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Primary claim -> its outcome as published, and in another run of the study."""
    before = {c["name"]: c["outcome"] for c in published["claims"] if c["primary"]}
    after = {c["name"]: c["outcome"] for c in outcome["claims"] if c["primary"]}
    return {name: (before.get(name, "none"), after.get(name, "none")) for name in {**before, **after}}


def add_replication(outcome: Mapping[str, Any], attempt: int, path: Path | None = None) -> bool:
    """Note whether a replication on fresh seeds agrees with the published verdict, and return that.

    Raises:
        LedgerError: if it ran other code than the published verdict rests on.
    """
    entries = read(path)
    published = entries[outcome["slug"]]
    if outcome["provenance"]["fingerprint"] != published["provenance"]["fingerprint"]:
        raise LedgerError(
            f"{outcome['slug']}: the replication ran other code than was published: publish it again first"
        )
    pairs = agreement(published, outcome)
    agrees = all(before == after for before, after in pairs.values())
    record = {
        "attempt": attempt,
        "date": outcome["provenance"]["date"],
        "outcome": outcome["verdict"]["outcome"],
        "agrees": agrees,
        "claims": {name: after for name, (_, after) in pairs.items()},
    }
    kept = [r for r in published["replications"] if r["attempt"] != attempt]
    published["replications"] = sorted([*kept, record], key=lambda r: int(r["attempt"]))
    _write(entries, path)
    return agrees


def add_event(slug: str, event: Mapping[str, Any], path: Path | None = None) -> None:
    """Append an event to the history of a published verdict; what is in a history stays as it is.

    Raises:
        LedgerError: if nothing is published under this slug.
    """
    entries = read(path)
    if slug not in entries:
        raise LedgerError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")
    entries[slug].setdefault("history", []).append(dict(event))
    _write(entries, path)


def current_fingerprints(published: Mapping[str, Any]) -> set[str]:
    """Fingerprints under which a verdict is current: the published code's and those certified since.

    One that was later found to compute other numbers is not among them.
    """
    current = {published["provenance"]["fingerprint"]}
    for event in published.get("history", ()):
        if event["event"] == "published":
            current = {event["fingerprint"]}
        elif event["event"] == "certified":
            current.add(event["fingerprint"])
        elif event["event"] == "differed":
            current.discard(event["fingerprint"])
    return current


def q_values(entries: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Benjamini-Hochberg q-values of all published primary statistical claims, by (slug, claim)."""
    keys = [
        (slug, claim["name"], claim["pvalue"])
        for slug, published in entries.items()
        for claim in published["claims"]
        if claim["primary"] and claim.get("pvalue") is not None
    ]
    if not keys:
        return {}
    adjusted = stats.false_discovery_control([p for _, _, p in keys])
    return {(slug, name): float(q) for (slug, name, _), q in zip(keys, adjusted, strict=True)}


def readme_table(entries: Mapping[str, Any], papers: Sequence[Any]) -> str:
    """The ledger as a Markdown table: every paper with a method, in the catalogue's order."""
    lines = ["| paper | verdict at desk scale | its control | what came out |", "| --- | --- | --- | --- |"]
    for paper in papers:
        if paper.state != "available":
            continue
        published = entries.get(paper.slug)
        name = f"`{paper.slug}`" + (", reconstructed" if paper.reconstructed else "")
        if published is None:
            lines.append(f"| {name} | not published yet | | |")
        else:
            verdict = published["verdict"]
            # the verdict has its own column: "Reproduced at desk scale: all 3 ..." goes on from the colon
            sentence = verdict["sentence"].partition(": ")[2].replace("|", "\\|")
            sentence = sentence[:1].upper() + sentence[1:]
            outcome = "partly reproduced" if verdict["outcome"] == "partly" else verdict["outcome"]
            control = verdict["control"] or "not asked"
            lines.append(f"| {name} | **{outcome}** | {control} | {sentence} |")
    planned = sum(paper.state != "available" for paper in papers)
    return "\n".join([*lines, f"| *{planned} more* | planned | | |"])


def renew_readme(path: Path, entries: Mapping[str, Any], papers: Sequence[Any]) -> None:
    """Put the ledger's table between the two ``<!-- ledger -->`` marks of a README."""
    text = path.read_text(encoding="utf-8")
    parts = text.split(MARK)
    if len(parts) != 3:
        raise LedgerError(f"{path} must hold {MARK} twice, around the ledger's table")
    renewed = f"{parts[0]}{MARK}\n{readme_table(entries, papers)}\n{MARK}{parts[2]}"
    _replace(path, renewed)


def _write(entries: Mapping[str, Any], path: Path | None) -> None:
    text = json.dumps(
        {"format": FORMAT, "entries": dict(sorted(entries.items()))}, indent=1, ensure_ascii=False
    )
    _replace(path or SHIPPED, text + "\n")


def _replace(path: Path, text: str) -> None:
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror}; publish from a checkout you own") from None
