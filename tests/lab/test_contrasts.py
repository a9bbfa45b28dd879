"""Contrasts: each is positive in the claimed direction, in the unit its minimum effect is given in."""

from __future__ import annotations

import math

import pytest

from trueup.lab import _contrasts as contrasts
from trueup.lab._contrasts import SeedCells


def cells(*rows: tuple[str, dict, dict, dict] | tuple[str, dict, dict]) -> SeedCells:
    return SeedCells([(*row, {})[:4] for row in rows], {"acc": True, "loss": False})  # type: ignore[misc]


#  accuracy: ghost 0.9 (0.85 and 0.95), large 0.7, scaled 0.8;  loss: 0.2, 0.4, 0.3
SEED = cells(
    ("large", {"noise": 0}, {"acc": 0.75, "loss": 0.4}),
    ("large", {"noise": 1}, {"acc": 0.65, "loss": 0.4}),
    ("scaled", {"noise": 0}, {"acc": 0.82, "loss": 0.3}),
    ("scaled", {"noise": 1}, {"acc": 0.78, "loss": 0.3}),
    ("ghost", {"noise": 1}, {"acc": 0.85, "loss": 0.1}),
    ("ghost", {"noise": 0}, {"acc": 0.95, "loss": 0.3}),
)


@pytest.mark.parametrize(
    ("contrast", "value"),
    [
        (contrasts.difference("ghost", "large", "acc"), 0.2),
        (contrasts.difference("large", "ghost", "acc"), -0.2),
        (contrasts.difference("ghost", "large", "loss"), 0.2),
        (contrasts.difference("ghost", "large", "acc", at={"noise": 1}), 0.2),
        (contrasts.difference("ghost", "scaled", "acc", at={"noise": 0}), 0.13),
        (contrasts.equivalence("ghost", "scaled", "acc"), 0.1),
        (contrasts.non_inferiority("large", "scaled", "loss"), -0.1),
        (contrasts.log_ratio("ghost", "large", "loss"), math.log(2)),
        (contrasts.log_ratio("ghost", "large", "acc"), math.log(9 / 7)),
        (contrasts.ordering("large < scaled <= ghost", "acc"), 0.2),
        (contrasts.ordering("large < ghost", "loss", at={"noise": 1}), 0.3),
        (contrasts.monotone("large", "acc", "noise", improves=False), 0.1),
        (contrasts.monotone("large", "acc", "noise"), -0.1),
        (contrasts.monotone("ghost", "loss", "noise"), 0.2),
        (contrasts.monotone("large", "acc", "noise", at={"noise": 0}), 0.0),
        (contrasts.spread("scaled", "large", "acc", "noise", best=0), 0.06),
        (contrasts.spread("large", "scaled", "acc", "noise", best=0), -0.06),
        (contrasts.rank_correlation("large", "noise", "acc"), -1.0),
        (contrasts.rank_correlation("large", "noise", "loss"), 0.0),  # a constant series
        (contrasts.custom(lambda c: 2 * c.mean("ghost", "acc"), ["ghost"], text="twice"), 1.8),
    ],
    ids=lambda x: x.text if isinstance(x, contrasts.Contrast) else "",
)
def test_values(contrast: contrasts.Contrast, value: float) -> None:
    assert contrast.value(SEED) == pytest.approx(value)


def test_the_smallest_step_decides_a_monotone_claim() -> None:
    rising = cells(*[("a", {"k": k}, {"acc": y}) for k, y in [(4, 0.6), (1, 0.1), (2, 0.5)]])  # any order
    assert contrasts.monotone("a", "acc", "k").value(rising) == pytest.approx(0.1)


@pytest.mark.parametrize(("method", "value"), [("kendall", 1 / 3), ("spearman", 0.5)])
def test_rank_correlation_of_two_series(method: str, value: float) -> None:
    seed = cells(("nets", {}, {}, {"score": [1.0, 2.0, 3.0], "acc": [0.1, 0.9, 0.5]}))
    contrast = contrasts.rank_correlation("nets", "score", "acc", method=method)  # type: ignore[arg-type]
    assert contrast.value(seed) == pytest.approx(value)
    assert contrast.scale == "correlation"


def test_a_series_needs_one_cell() -> None:
    seed = cells(*[("nets", {"k": k}, {}, {"score": [1.0, 2.0], "acc": [0.1, 0.2]}) for k in (1, 2)])
    with pytest.raises(LookupError, match="2 cells; name every condition in `at`"):
        contrasts.rank_correlation("nets", "score", "acc").value(seed)
    assert contrasts.rank_correlation("nets", "score", "acc", at={"k": 1}).value(seed) == 1.0


def test_the_tests_and_scales_of_the_constructors() -> None:
    assert contrasts.difference("a", "b", "acc").test == "superiority"
    assert contrasts.equivalence("a", "b", "acc").test == "equivalence"
    assert contrasts.non_inferiority("a", "b", "acc").test == "non-inferiority"
    assert contrasts.log_ratio("a", "b", "acc").scale == "log"
    assert contrasts.custom(lambda c: 0.0, ["a"], text="", test="equivalence").test == "equivalence"
    assert contrasts.custom(lambda c: 0.0, ["a"], text="", metrics=["acc"]).metric == "acc"
    assert contrasts.custom(lambda c: 0.0, ["a"], text="", metrics=["acc", "loss"]).metric == ""


def test_a_spread_also_asks_for_no_loss_at_the_best_setting() -> None:
    steady = contrasts.spread("large", "ghost", "acc", "noise", best=1)
    assert [link.test for link in steady.links] == ["superiority", "non-inferiority"]
    assert [link.value(SEED) for link in steady.links] == pytest.approx([0.0, -0.2])
    assert [dict(link.at) for link in steady.links] == [{}, {"noise": 1}]
    assert steady.against is not None
    assert steady.against("scaled").links == ()  # a control need explain the smaller spread alone
    pinned = contrasts.spread("large", "ghost", "acc", "noise", best=1, at={"size": 2})
    assert [dict(link.at) for link in pinned.links] == [{"size": 2}, {"size": 2, "noise": 1}]


@pytest.mark.parametrize(
    ("contrast", "methods", "rivals"),
    [
        (contrasts.difference("a", "b", "acc"), "a", "b"),
        (contrasts.log_ratio("a", "b", "acc"), "a", "b"),
        (contrasts.non_inferiority("a", "b", "acc"), "a", "b"),
        (contrasts.equivalence("a", "b", "acc"), "ab", "ab"),  # a better arm of the two breaks it
        (contrasts.ordering("b < c <= a", "acc"), "a", "bc"),
        (contrasts.spread("a", "b", "acc", "k", best=1), "a", "b"),
        (contrasts.monotone("a", "acc", "k"), "a", "a"),
        (contrasts.rank_correlation("a", "k", "acc"), "a", "a"),
        (contrasts.custom(lambda c: 0.0, ["a", "b", "c"], text=""), "a", "bc"),
        (contrasts.custom(lambda c: 0.0, ["a"], text=""), "a", "a"),
        (contrasts.custom(lambda c: 0.0, ["a", "b"], text="", test="equivalence"), "ab", "ab"),
    ],
    ids=lambda x: x.text if isinstance(x, contrasts.Contrast) else "",
)
def test_a_contrast_names_its_methods_and_rivals(
    contrast: contrasts.Contrast, methods: str, rivals: str
) -> None:
    assert (contrast.methods, contrast.rivals) == (tuple(methods), tuple(rivals))


def test_an_ordering_is_made_of_its_links() -> None:
    chain = contrasts.ordering("large < scaled <= ghost", "acc")
    assert [link.test for link in chain.links] == ["superiority", "non-inferiority"]
    assert [link.value(SEED) for link in chain.links] == pytest.approx([0.1, 0.1])
    assert [link.arms for link in chain.links] == [("scaled", "large"), ("ghost", "scaled")]
    assert chain.arms == ("large", "scaled", "ghost")


@pytest.mark.parametrize(
    "chain", ["a", "", "a b", "a <", "a > b", "a<b", "a < b <", "< a"], ids=lambda chain: chain or "empty"
)
def test_an_ordering_that_cannot_be_read(chain: str) -> None:
    with pytest.raises(ValueError, match="write arm names with < or <= between them"):
        contrasts.ordering(chain, "acc")


@pytest.mark.parametrize(
    ("contrast", "value"),
    [
        (contrasts.difference("ghost", "large", "acc"), 0.1),
        (contrasts.log_ratio("ghost", "large", "loss"), math.log(1.5)),
        (contrasts.ordering("large < ghost", "acc"), 0.1),
        (contrasts.spread("large", "ghost", "acc", "noise", best=0), -0.06),
    ],
    ids=lambda x: x.text if isinstance(x, contrasts.Contrast) else "",
)
def test_a_control_takes_the_place_of_the_baseline(contrast: contrasts.Contrast, value: float) -> None:
    assert contrast.against is not None
    against = contrast.against("scaled")
    assert against.value(SEED) == pytest.approx(value)
    assert "scaled" in against.arms


def test_what_is_no_gain_has_no_control() -> None:
    assert contrasts.equivalence("a", "b", "acc").against is None
    assert contrasts.non_inferiority("a", "b", "acc").against is None
    assert contrasts.monotone("a", "acc", "k").against is None


def test_a_ratio_needs_positive_values() -> None:
    zero = cells(("a", {}, {"loss": 0.0}), ("b", {}, {"loss": 1.0}))
    for pair in (("a", "b"), ("b", "a")):
        with pytest.raises(ValueError, match=r"needs values > 0; got .*: use difference"):
            contrasts.log_ratio(*pair, "loss").value(zero)


def test_a_missing_cell_is_named() -> None:
    with pytest.raises(LookupError, match=r"no cell of arm 'ghost' at \{'noise': 9\}"):
        SEED.mean("ghost", "acc", {"noise": 9})
    with pytest.raises(LookupError, match=r"no cell of arm 'gost'$"):
        SEED.mean("gost", "acc")
