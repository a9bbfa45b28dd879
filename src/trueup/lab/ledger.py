"""The ledger: published desk verdicts, one file shipped with the package.

A verdict enters it through `publish` only, from an outcome that followed the protocol on its published
seeds. The history of an entry is append-only: when it was published, certified, judged again or replicated,
from which commit, with which outcomes, and why. Functions with a `path` use the shipped file by default. An
entry is stale if its code was neither published nor certified since, and is marked so wherever it is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trueup._atomic_write import atomic_write
from trueup.lab import _evidence as evidence_files
from trueup.lab._errors import StudyError
from trueup.lab._outcomes import ORDER, outcome_words
from trueup.lab._sentences import without_head

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
FALSE_WIN = 0.025  # one-sided error of a primary claim
MARK = "<!-- ledger -->"
SHIPPED = Path(__file__).parent.parent / "ledger.json"

Standing: TypeAlias = Literal["published", "certified", "stale"]

_CLAIM_FIELDS = (
    *("name", "statement", "origin", "primary", "kind", "outcome", "note", "sentence", "control_sentence"),
    *("details", "survives", "contrast", "arms", "labels", "metric", "measure", "higher", "unit"),
    *("scale_factor", "scale", "mean", "low", "high", "level", "n", "min_effect", "margin", "test"),
    *("pvalue", "look", "skew"),
)


class LedgerError(StudyError):
    """Raised for an outcome that may not be published, or a ledger that cannot be read or written."""


def read(path: Path | None = None) -> dict[str, Any]:
    """Read the ledger as slug -> entry; empty if nothing is published yet.

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
        if not isinstance(found, int) or not all(isinstance(e, dict) for e in entries.values()):
            raise ValueError(f"format {found!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"{path} is not a ledger: {error}") from None
    if found > FORMAT:
        raise LedgerError(f"{path} has format {found}; this trueup reads {FORMAT}: upgrade trueup")
    return entries


def entry(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Make a ledger entry of an outcome document."""
    provenance = outcome["provenance"]
    return {
        "slug": outcome["slug"],
        "scale": outcome["scale"],
        "protocol": outcome["protocol"],
        "protocols": outcome["protocols"],
        "verdict": outcome["verdict"],
        "scope_sentence": outcome["scope_sentence"],
        "claims": _kept(outcome["claims"]),
        "cost": {k: outcome["cost"][k] for k in ("cells", "cpu_seconds", "stage_seconds", "peak_memory")},
        "provenance": {
            **{k: provenance.get(k, "") for k in ("trueup", "torch", "date", "fingerprint")},
            "data": list(provenance.get("data", ())),
        },
        "history": [],
    }


def _kept(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: claim[k] for k in _CLAIM_FIELDS if k in claim} for claim in claims]


def publish(
    outcome: Mapping[str, Any],
    evidence: Mapping[str, Any],
    *,
    commit: str,
    changed: str | None = None,
    reason: str = "",
    path: Path | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Write an outcome's verdict into the ledger and its evidence beside it, and return the entry.

    Args:
        commit: of the code that computed it.
        changed: how the study differs from what was published under its protocol (`evidence.changed`).
        reason: why a protocol that was published before is published again; kept in the history.
        path, folder: the ledger, and the folder of the evidence.

    Raises:
        LedgerError: if the outcome is not at desk scale on the protocol's seeds, is incomplete, declares
            something else than was published under its protocol number, or lacks a reason.
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
    with _locked(path):
        entries, new = read(path), entry(outcome)
        old = entries.get(slug)
        if old is not None:
            if _is_published(old, outcome, folder):
                return dict(old)
            if changed is None and evidence_files.exists(slug, folder):
                before = evidence_files.read(slug, folder)["plan"]
                changed = evidence_files.difference(before, evidence["plan"])
            _check_protocol(old, outcome, changed)
            if old["protocol"] == new["protocol"] and not reason.strip():
                raise LedgerError(
                    f"{slug}: protocol {old['protocol']} was published before, on the same seeds: say why "
                    "it is published again (--reason), or certify it if only its code was rewritten"
                )
            tried = {p["protocol"]: p for p in (*old["protocols"], *new["protocols"])}
            new["protocols"] = [tried[n] for n in sorted(tried)]
            new["history"] = list(old.get("history", ()))
        new["history"].append(
            {
                "event": "published",
                "date": outcome["provenance"]["date"],
                "commit": commit,
                "protocol": outcome["protocol"],
                "fingerprint": outcome["provenance"]["fingerprint"],
                **_outcomes(new["verdict"], new["claims"]),
                "reason": reason or ("first published" if old is None else "a new protocol"),
            }
        )
        try:
            evidence_files.write({**evidence, "commit": commit}, folder)
        except OSError as error:
            raise LedgerError(f"cannot write the evidence of {slug}: {error.strerror or error}") from None
        _write({**entries, slug: new}, path)
        return new


def _outcomes(verdict: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize a verdict for an event of the history."""
    return {
        "verdict": verdict["outcome"],
        "control": verdict["control"],
        "outcomes": {claim["name"]: claim["outcome"] for claim in claims},
    }


def _is_published(old: Mapping[str, Any], outcome: Mapping[str, Any], folder: Path | None) -> bool:
    """Return whether this same verdict is in the ledger, with its evidence."""
    new = entry(outcome)
    same = all(old[part] == new[part] for part in ("protocol", "verdict", "claims"))
    same = same and old["provenance"]["fingerprint"] == new["provenance"]["fingerprint"]
    return same and evidence_files.exists(outcome["slug"], folder)


def _check_protocol(old: Mapping[str, Any], outcome: Mapping[str, Any], changed: str | None) -> None:
    """Refuse to publish something else under a protocol number that is taken."""
    slug, protocol = outcome["slug"], outcome["protocol"]
    if protocol < old["protocol"]:
        raise LedgerError(
            f"{slug}: protocol {old['protocol']} is published, this is the earlier protocol {protocol}: "
            "raise the study's protocol number"
        )
    if protocol > old["protocol"]:
        return
    # an entry from before evidence shipped has nothing else to compare with
    changed = changed or evidence_files.difference(_declared(old["claims"]), _declared(outcome["claims"]))
    if changed is not None:
        raise LedgerError(
            f"{slug}: protocol {protocol} was published with other claims or another plan: {changed}. Raise "
            "the study's protocol number, which draws fresh seeds"
        )


def _declared(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    declared = ("name", "primary", "kind", "min_effect", "scale")
    return [{k: claim[k] for k in declared if k in claim} for claim in claims]


def rejudge(slug: str, path: Path | None = None, folder: Path | None = None, *, date: str) -> dict[str, Any]:
    """Apply the present rule to the stored contrasts of a published verdict, and return the entry.

    This also renews the sentences. The history gains an event if an outcome changed.
    """
    with _locked(path):
        entries = read(path)
        _require(entries, slug)
        old = entries[slug]
        verdict, claims = evidence_files.rejudge(evidence_of(old, folder))
        new = {**old, "verdict": verdict, "claims": _kept(claims)}
        if _outcomes(verdict, claims) != _outcomes(old["verdict"], old["claims"]):
            event = {"event": "rejudged", "date": date, "protocol": old["protocol"]}
            new["history"] = [*old["history"], event | _outcomes(verdict, claims)]
        if new != old:
            _write({**entries, slug: new}, path)
        return new


def evidence_of(published: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Read the evidence that an entry rests on.

    Raises:
        LedgerError: if the stored evidence is that of another publication.
        EvidenceError: if there is none, or it cannot be read.
    """
    document = evidence_files.read(published["slug"], folder)
    commits = [event["commit"] for event in published.get("history", ()) if event["event"] == "published"]
    pairs = [
        ("protocol", published.get("protocol", document["protocol"]), document["protocol"]),
        ("fingerprint", published["provenance"]["fingerprint"], document["fingerprint"]),
        ("commit", commits[-1] if commits else document["commit"], document["commit"]),
    ]
    for what, of_entry, of_evidence in pairs:
        if of_entry != of_evidence:
            raise LedgerError(
                f"the evidence of {published['slug']} is that of another publication: its {what} is "
                f"{of_evidence}, the ledger's {of_entry}; restore both from one commit, or publish again"
            )
    return document


def _require(entries: Mapping[str, Any], slug: str) -> None:
    if slug not in entries:
        raise LedgerError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")


def standing(published: Mapping[str, Any], fingerprint: str) -> Standing:
    """Return whether this code was published, certified since, or neither (`stale`)."""
    if fingerprint not in current_fingerprints(published):
        return "stale"
    return "published" if fingerprint == published["provenance"]["fingerprint"] else "certified"


def checkout() -> Path | None:
    """Return the git checkout that holds the shipped ledger; `None` for an installed package."""
    root = SHIPPED.parents[2]
    return root if (root / ".git").exists() else None


def event_words(event: Mapping[str, Any]) -> str:
    """Describe an event of a history in one line.

    >>> event_words({"event": "rejudged", "verdict": "smaller", "protocol": 1})
    'judged again by a new rule: below the minimum effect'
    """
    commit = f" at commit {event['commit'][:12]}" if event.get("commit") else ""
    if event["event"] == "published":
        words = outcome_words(event["verdict"])
        return f"protocol {event['protocol']} published{commit}: {words} ({event['reason']})"
    if event["event"] == "rejudged":
        return f"judged again by a new rule: {outcome_words(event['verdict'])}"
    if event["event"] == "replicated":
        result = {True: "effects agree", False: "effects differ", None: "cells failed"}[event["agrees"]]
        return f"replication {event['attempt']}: {result}"
    if event["event"] == "certified":
        # the others equal what the published code computes on that machine, or are rounds of cost claims
        equal = f"{event['equal_to_evidence']:,} of {event['cells']:,} cells equal the published ones"
        return f"certified{commit}: {equal}"
    return f"{event['event']}{commit}: some of {event['cells']:,} cells differ from the published code's"


def last_certified(published: Mapping[str, Any]) -> str:
    """Return the date of the last certification since the last publication; "" if there is none."""
    date = ""
    for event in published.get("history", ()):
        if event["event"] in ("published", "differed"):
            date = ""
        elif event["event"] == "certified":
            date = str(event["date"])
    return date


def times_published(published: Mapping[str, Any]) -> int:
    """Count how often the entry's protocol was published."""
    events = published.get("history", ())
    return sum(e["event"] == "published" and e["protocol"] == published["protocol"] for e in events)


def replications(published: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List every replication of the entry's protocol, whatever its result."""
    events = published.get("history", ())
    return [e for e in events if e["event"] == "replicated" and e["protocol"] == published["protocol"]]


def add_event(slug: str, event: Mapping[str, Any], path: Path | None = None) -> None:
    """Append an event to the history of a published verdict; earlier events stay as they are.

    Raises:
        LedgerError: if nothing is published under this slug.
    """
    with _locked(path):
        entries = read(path)
        _require(entries, slug)
        entries[slug].setdefault("history", []).append(dict(event))
        _write(entries, path)


def current_fingerprints(published: Mapping[str, Any]) -> set[str]:
    """Return the fingerprints under which a verdict is current: the published one and those certified since.

    One that was later found to compute other numbers is left out.
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


def expected_false_wins(entries: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of primary statistical claims, and the expected false wins among them."""
    claims = (claim for published in entries.values() for claim in published["claims"])
    number = sum(claim["primary"] and claim["kind"] == "statistical" for claim in claims)
    return number, FALSE_WIN * number


def q_values(entries: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Compute Benjamini-Hochberg q-values of all published primary statistical claims, by (slug, claim)."""
    keys = [
        (slug, claim["name"], claim["pvalue"])
        for slug, published in entries.items()
        for claim in published["claims"]
        if claim["primary"] and claim.get("pvalue") is not None
    ]
    if not keys:
        return {}
    from scipy import stats  # reading the ledger must not take a second

    adjusted = stats.false_discovery_control([p for _, _, p in keys])
    return {(slug, name): float(q) for (slug, name, _), q in zip(keys, adjusted, strict=True)}


def readme_table(entries: Mapping[str, Any], papers: Sequence[Any]) -> str:
    """Sum up the ledger in Markdown: totals, and one row per area of the catalogue."""
    areas: dict[str, list[Any]] = {}
    for paper in papers:
        areas.setdefault(paper.area, []).append(paper)
    lines = [
        f"{_available(papers)} papers are available; verdicts: {_tally(entries, papers) or 'none yet'}.",
        *("", "| area | available | verdicts |", "| --- | --- | --- |"),
        *(f"| `{name}` | {_available(part)} | {_tally(entries, part)} |" for name, part in areas.items()),
        "",
        "Every verdict with its effect: `trueup ledger`, the page *Ledger* of the site (`make docs`), "
        "or [as data](src/trueup/ledger.json).",
    ]
    return "\n".join(lines)


def _available(papers: Sequence[Any]) -> str:
    return f"{sum(paper.state == 'available' for paper in papers)} of {len(papers)}"


def _tally(entries: Mapping[str, Any], papers: Sequence[Any]) -> str:
    """Count the verdicts of some papers: "3 reproduced, 1 inconclusive"."""
    outcomes = [entries[paper.slug]["verdict"]["outcome"] for paper in papers if paper.slug in entries]
    return ", ".join(f"{outcomes.count(o)} {outcome_words(o)}" for o in ORDER if o in outcomes)


def full_table(entries: Mapping[str, Any], papers: Sequence[Any]) -> str:
    """Return the ledger as a Markdown table: one row per available paper, in the catalogue's order.

    Names link to the method cards, seen from the root of the documentation (`methods/adamp.md`).
    """
    lines = ["| paper | verdict | its control | result |", "| --- | --- | --- | --- |"]
    for paper in papers:
        if paper.state != "available":
            continue
        name = f"[{paper.slug}](methods/{paper.slug}.md)" + (", reconstructed" if paper.reconstructed else "")
        published = entries.get(paper.slug)
        if published is None:
            lines.append(f"| {name} | not published yet | | |")
            continue
        verdict, certified = published["verdict"], last_certified(published)
        words = f"**{outcome_words(verdict['outcome'])}**" + (f", certified {certified}" if certified else "")
        # the verdict has its own column
        sentence = without_head(verdict["sentence"], verdict["outcome"], "desk").replace("|", "\\|")
        lines.append(f"| {name} | {words} | {verdict['control'] or 'not compared'} | {sentence} |")
    return "\n".join(lines)


def renew_readme(path: Path, entries: Mapping[str, Any], papers: Sequence[Any]) -> None:
    """Put the summary of the ledger between the two `<!-- ledger -->` marks of a README."""
    text = path.read_text(encoding="utf-8")
    parts = text.split(MARK)
    if len(parts) != 3:
        raise LedgerError(f"{path} must contain {MARK} twice, around the ledger's summary: add the marks")
    renewed = f"{parts[0]}{MARK}\n{readme_table(entries, papers)}\n{MARK}{parts[2]}"
    _replace(path, renewed)


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Keep other processes from changing the ledger between reading and writing it, where locks exist."""
    folder = (path or SHIPPED).parent
    if fcntl is None or not folder.is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # a lock on the folder leaves no file behind
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(entries: Mapping[str, Any], path: Path | None) -> None:
    text = json.dumps(
        {"format": FORMAT, "entries": dict(sorted(entries.items()))}, indent=1, ensure_ascii=False
    )
    _replace(path or SHIPPED, text + "\n")


def _replace(path: Path, text: str) -> None:
    try:
        atomic_write(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror}; publish from a checkout you own") from None
