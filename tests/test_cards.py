"""The method cards of the documentation say how a published verdict stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from trueup import papers
from trueup.lab import ledger
from trueup.studies import _lookup as lookup

pytest.importorskip("mkdocs", reason="the docs extra is not installed")


@pytest.fixture(scope="module")
def cards() -> Any:
    spec = importlib.util.spec_from_file_location("cards", Path(__file__).parent.parent / "docs/cards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        ("certified", "the code was rewritten since, and computes the same to the last bit"),
        ("stale", "the code has changed since"),
    ],
)
def test_a_card_says_how_its_verdict_stands(
    cards: Any, monkeypatch: pytest.MonkeyPatch, standing: str, said: str
) -> None:
    entry = ledger.read()["adamp"]
    for now in ("published", "certified", "stale"):
        monkeypatch.setattr(lookup, "standing", lambda paper, entries, now=now: now)
        assert (said in cards._verdicts(papers.get("adamp"), entry)) == (now == standing)
