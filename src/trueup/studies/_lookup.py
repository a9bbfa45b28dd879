"""Find the study of a paper or file, and say how its published verdict stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup import papers

if TYPE_CHECKING:
    from trueup.lab._engine import StudyRef
    from trueup.lab.ledger import Standing


def reference(target: str) -> StudyRef:
    """Return the study of a paper's slug or of a study file.

    Raises:
        ValueError: an unknown or planned paper, another kind of file, or a study file with a paper's slug.
        FileNotFoundError: there is no such study file.
    """
    from trueup.lab._engine import StudyRef

    known = {paper.slug for paper in papers.CATALOGUE}
    if target.endswith(".py"):
        path = Path(target).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"no study file {target}")
        ref = StudyRef("file", str(path))
        if ref.load().slug in known:
            raise ValueError(
                f"{target}: the slug {ref.load().slug!r} belongs to a paper, and results would be mixed up: "
                "give your study another slug"
            )
        return ref
    if target not in known and (Path(target).is_file() or Path(f"{target}.py").is_file()):
        raise ValueError(
            f"{target} is neither a paper nor a study file, whose name ends in .py; "
            "`trueup compare` judges a table of results"
        )
    paper = papers.get(target)
    if paper.state == "planned":
        raise ValueError(
            f"{target} is planned, not written yet; `trueup list --available` shows what is there"
        )
    return StudyRef("module", paper.study)


def check_data(ref: StudyRef, scale: str) -> None:
    """Raise FileNotFoundError if a data set that the study declares is not in the cache."""
    from trueup import data

    missing = [name for name in ref.load().data_at(scale) if not data.is_ready(name)]
    if missing:
        raise FileNotFoundError(
            f"{ref.load().slug} needs data that is not here yet: run `trueup data fetch {' '.join(missing)}`"
        )


def standing(paper: papers.Paper, entries: dict[str, Any]) -> Standing:
    """Return whether the present code is the published one, was certified since, or is neither."""
    from trueup.data._sets import find
    from trueup.lab import ledger
    from trueup.lab._engine import StudyRef
    from trueup.lab._fingerprint import verdict_fingerprint

    published = entries[paper.slug]
    hashes = [find(data["name"]).sha256 for data in published["provenance"].get("data", ())]
    return ledger.standing(published, verdict_fingerprint(StudyRef("module", paper.study), hashes))
