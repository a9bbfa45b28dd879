"""The catalogue: one type, and the fifty records of `papers.toml`. It is the only registry of papers.

A record gives public names as text, so that reading the catalogue imports neither torch nor any area. A paper
is `available` once it has public names, and `planned` until then.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CATALOGUE", "Fidelity", "Paper", "get"]

Fidelity = Literal["official", "independent", "derived", "reconstructed"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: the problem it treats, its authors, and the public names that implement it.

    Attributes:
        slug: names the study, the reference values and the method card.
        title: the paper's title.
        authors: full names in the paper's order, separated by commas.
        year: of publication at `venue`, or of the preprint where there is no venue.
        arxiv: arXiv identifier, without the version.
        problem: the practitioner's problem, in one line.
        area: the sub-package that holds the method.
        fidelity: what the implementation was checked against. `official`: the values of the official
            code; `independent`: another trusted implementation; `derived`: a closed form or brute force of
            the paper's equations; `reconstructed`: the equations could not be confirmed.
        reference: whose code it was, which part of it, and what is missing, in one line.
        venue: where the paper was published; empty for a preprint.
        names: public dotted names, the most important one first; empty while the paper is planned.
        usage: three lines of code that use the method after `import torch, trueup`; empty while planned.

    Example:
        >>> paper = get("adamp")
        >>> paper.names[0], paper.state, paper.fidelity
        ('trueup.optim.AdamP', 'available', 'official')
        >>> paper.study
        'trueup.studies.adamp'
    """

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    problem: str
    area: str
    fidelity: Fidelity
    reference: str
    venue: str = ""
    names: tuple[str, ...] = ()
    usage: str = ""

    @property
    def state(self) -> Literal["available", "planned"]:
        """`available` if and only if public names implement the paper."""
        return "available" if self.names else "planned"

    @property
    def reconstructed(self) -> bool:
        """Whether a method is available whose equations are not confirmed; shown wherever the method is."""
        return self.state == "available" and self.fidelity == "reconstructed"

    @property
    def study(self) -> str:
        """Dotted name of the paper's study module; it exists once the paper is available."""
        return f"trueup.studies.{self.slug.replace('-', '_')}"

    @property
    def url(self) -> str:
        """Address of the paper's abstract page."""
        return f"https://arxiv.org/abs/{self.arxiv}"


def get(slug: str) -> Paper:
    """Return the record of the paper with this slug.

    Raises:
        ValueError: if no paper has this slug; the message suggests the nearest one.

    Example:
        >>> get("ghost-batch-norm").year
        2017
        >>> get("adamw")
        Traceback (most recent call last):
        ...
        ValueError: no paper is called 'adamw'; did you mean 'adamp'? `trueup list` shows all fifty
    """
    try:
        return _BY_SLUG[slug]
    except KeyError:
        near = difflib.get_close_matches(slug.lower().replace("_", "-"), _BY_SLUG, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no paper is called {slug!r}; {hint}`trueup list` shows all fifty") from None


CATALOGUE: tuple[Paper, ...] = tuple(
    Paper(**record | {"names": tuple(record.get("names", ())), "usage": record.get("usage", "").rstrip()})
    for record in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["paper"]
)
_BY_SLUG = {paper.slug: paper for paper in CATALOGUE}
