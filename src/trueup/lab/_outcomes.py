"""The outcomes of claims and papers: their texts, colours, marks and order, in one table.

The verdict rule decides the outcome of a claim; this module decides how it is shown everywhere. It imports
only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """The presentation of one outcome.

    Attributes:
        key: the outcome in verdicts and documents.
        words: the text for readers; `{scale}` is replaced by the scale of the study.
        own: the text when users compare results of their own; "" where that cannot happen.
        colour: the colour on the terminal.
        icon: the icon of the chip on a page; also the name of its colour there.
        mark: plotly's symbol for a claim in the ledger's figure; "" where there is no effect to draw.
        claim, paper: whether a claim, or a paper, can have this outcome.
    """

    key: str
    words: str
    own: str = ""
    colour: str = "white"
    icon: str = "none"
    mark: str = ""
    claim: bool = True
    paper: bool = True


_ROWS = (  # best first: the order of the ledger and of tallies
    Shown("reproduced", "reproduced", "better", "green", "good", "diamond"),
    Shown("partly", "partly reproduced", colour="yellow", icon="half", claim=False),
    Shown(
        "smaller",
        "below the minimum effect",
        "better, by less than you asked",
        "yellow",
        "less",
        "diamond-open",
    ),
    Shown("inconclusive", "inconclusive", "cannot tell", "yellow", "unsure", "circle-open"),
    Shown("contradicted", "contradicted at {scale} scale", "too small or worse", "red", "bad", "x"),
    Shown("incomplete", "incomplete", colour="magenta", icon="open"),
    Shown("invalid", "invalid", colour="magenta", icon="warn", paper=False),
    Shown("none", "no verdict", colour="dim", claim=False),
)

OUTCOMES: dict[str, Shown] = {row.key: row for row in _ROWS}
ORDER: dict[str, int] = {key: place for place, key in enumerate(OUTCOMES)}
_SAID = OUTCOMES | {row.own: row for row in _ROWS if row.own}


def shown(word: str) -> Shown:
    """Return the row of an outcome, by its key or its text for own results; an unknown word shows itself.

    >>> shown("cannot tell").key, shown("new").words
    ('inconclusive', 'new')
    """
    return _SAID.get(word) or Shown(word, word)


def outcome_words(word: str, scale: str = "desk") -> str:
    """Return the text of an outcome; a text about own results is returned unchanged.

    >>> outcome_words("contradicted"), outcome_words("smaller"), outcome_words("cannot tell")
    ('contradicted at desk scale', 'below the minimum effect', 'cannot tell')
    """
    return OUTCOMES[word].words.format(scale=scale) if word in OUTCOMES else word


def own_words(outcome: str) -> str:
    """Return the text of an outcome when users compare results of their own.

    >>> own_words("smaller")
    'better, by less than you asked'
    """
    return shown(outcome).own or outcome
