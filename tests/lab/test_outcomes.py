"""The table of outcomes: complete, and the only place where they are listed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import trueup
from trueup.lab import _outcomes as outcomes
from trueup.lab import _verdict as verdict

SOURCES = Path(trueup.__file__).parent
SAID = {*outcomes.OUTCOMES} | {row.own for row in outcomes.OUTCOMES.values() if row.own}


def test_the_table_covers_every_outcome_of_claims_and_papers() -> None:
    rows = outcomes.OUTCOMES.values()
    assert {row.key for row in rows if row.claim} == {*get_args(verdict.Outcome), "smaller"}
    assert {row.key for row in rows if row.paper} == {*get_args(verdict.PaperOutcome), "smaller"}


def test_outcomes_can_be_distinguished() -> None:
    for part in ("words", "icon", "mark", "own"):
        values = [value for row in outcomes.OUTCOMES.values() if (value := getattr(row, part))]
        assert len(set(values)) == len(values), part


def test_a_gain_below_the_minimum_stands_between_partly_and_inconclusive() -> None:
    order = outcomes.ORDER
    assert order["reproduced"] < order["partly"] < order["smaller"] < order["inconclusive"]
    row = outcomes.shown("better, by less than you asked")
    assert (row.key, row.colour) == ("smaller", "yellow")


def test_every_icon_is_drawn_and_has_its_colour() -> None:
    report = SOURCES / "lab" / "report"
    sprite = (report / "templates" / "page.html").read_text(encoding="utf-8")
    css = (report / "assets" / "report.css").read_text(encoding="utf-8")
    for row in outcomes.OUTCOMES.values():
        assert f'id="i-{row.icon}"' in sprite
        assert f".is-{row.icon}" in css
        assert not row.mark or f"--{row.icon}: light-dark(" in css


def listed_by_hand(tree: ast.AST) -> list[int]:
    """Return the lines of dictionaries with an outcome as key, and of collections of three or more."""
    literal = {
        id(node.slice)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal"
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in literal:
            continue
        if isinstance(node, ast.Dict):
            items, fewest = node.keys, 2
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            items, fewest = list(node.elts), 3
        else:
            continue
        words = {item.value for item in items if isinstance(item, ast.Constant)}
        if len(words & SAID) >= fewest:
            found.append(node.lineno)
    return found


def test_no_other_file_lists_outcomes() -> None:
    elsewhere = []
    for path in SOURCES.rglob("*.py"):
        if path not in (Path(outcomes.__file__), Path(verdict.__file__)):  # the rule decides between them
            elsewhere += [f"{path}:{line}" for line in listed_by_hand(ast.parse(path.read_text("utf-8")))]
    keys = re.compile("|".join(rf"""["']{re.escape(word)}["']\s*:""" for word in SAID))
    for path in SOURCES.rglob("*.html"):
        elsewhere += [f"{path}: {hit}" for hit in keys.findall(path.read_text(encoding="utf-8"))]
    assert elsewhere == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('{"reproduced": 0, "contradicted": 1}', [1]),
        ('x in ("reproduced", "smaller", "cannot tell")', [1]),
        ('x in ("incomplete", "invalid")', []),
        ('Literal["reproduced", "smaller", "inconclusive"]', []),
    ],
)
def test_a_list_by_hand_is_found(source: str, lines: list[int]) -> None:
    assert listed_by_hand(ast.parse(source)) == lines


def test_the_table_needs_the_standard_library_only() -> None:
    code = "import sys; old = {*sys.modules}; exec(open(sys.argv[1]).read()); print(*({*sys.modules} - old))"
    path = outcomes.__file__
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in out.stdout.split()} <= sys.stdlib_module_names
