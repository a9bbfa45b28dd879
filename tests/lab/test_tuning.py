import itertools

import pytest

from trueup.lab._seeds import replicate_seeds
from trueup.lab._spec import Axis, Metric
from trueup.lab._tuning import (
    Trial,
    Tuned,
    choose,
    edges,
    extra_trials,
    replicate_tuning_seeds,
    runner_up,
    widen,
)

UP, DOWN = Metric("acc", higher=True, worst=0.0), Metric("loss", higher=False, worst=10.0)


def test_the_best_mean_wins_and_ties_go_to_the_first():
    trials = [Trial({"lr": 1}, (0.1, 0.3)), Trial({"lr": 2}, (0.2, 0.2)), Trial({"lr": 3}, (0.0, 0.1))]
    assert choose(trials, UP).hyper == {"lr": 1}
    assert choose(trials, DOWN).hyper == {"lr": 3}
    assert choose(trials[1::-1], UP).hyper == {"lr": 2}


@pytest.mark.parametrize(("metric", "winner", "second"), [(UP, 3, 2), (DOWN, 1, 2)])
def test_the_runner_up_stands_beside_the_winner_seed_by_seed(metric, winner, second):
    trials = tuple(Trial({"lr": i}, (i / 10, i / 10 + 0.1 * (i == 2))) for i in (1, 2, 3))
    found = runner_up(Tuned(trials, {"lr": winner}), metric)
    assert found.hyper == {"lr": second}
    assert found.behind == pytest.approx(0.05 if metric is UP else 0.15)
    assert found.standard_error == pytest.approx(0.05)
    assert runner_up(Tuned(trials[:1], {"lr": 1}), metric) is None
    assert runner_up(Tuned((), {"lr": 1}), metric) is None


def test_means_that_are_equal_to_rounding_tie():
    trials = [Trial({"lr": 1}, (0.1, 0.2, 0.3)), Trial({"lr": 2}, (0.3, 0.2, 0.1))]
    assert trials[1].mean != trials[0].mean
    assert choose(trials, UP).hyper == choose(trials, DOWN).hyper == {"lr": 1}


def test_edges_are_the_ends_of_ordered_axes():
    lr, kind, momentum = (
        Axis("lr", (0.1, 0.3, 1.0)),
        Axis("kind", ("a", "b")),
        Axis("m", (0.5, 0.9, 1.0), high=1.0),
    )
    axes = (lr, kind, momentum)
    assert edges(axes, {"lr": 0.1, "kind": "a", "m": 0.9}) == {"lr": "low"}
    assert edges(axes, {"lr": 1.0, "kind": "b", "m": 1.0}) == {"lr": "high"}
    assert edges(axes, {"lr": 0.3, "kind": "b", "m": 0.5}) == {"m": "low"}


@pytest.mark.parametrize(
    ("values", "sides", "expected"),
    [
        ((0.1, 0.3), {"high"}, (0.1, 0.3, 0.9)),
        ((0.1, 0.3), {"low"}, (0.0333333, 0.1, 0.3)),
        ((1, 10), {"low", "high"}, (0, 1, 10, 100)),
        ((-1.0, 0.0, 1.0), {"high", "low"}, (-2.0, -1.0, 0.0, 1.0, 2.0)),
    ],
)
def test_widening_goes_on_at_the_grids_own_pace(values, sides, expected):
    assert widen(Axis("a", values), sides).values == expected


def test_widening_stops_at_a_natural_limit():
    axis = Axis("momentum", (0.5, 0.9), high=1.0)
    assert widen(axis, {"high"}).values == (0.5, 0.9, 1.0)
    assert edges((widen(axis, {"high"}),), {"momentum": 1.0}) == {}


LR, WD, BETA = Axis("lr", (0.1, 1.0)), Axis("wd", (0, 1, 2)), Axis("beta", (1, 2, 3))


def extra(axes, scores, shared, sides, metric=UP):
    """Return the new trials as tuples, after a first round with these scores and widened sides."""
    grid = list(itertools.product(*(a.values for a in axes)))
    names = [a.name for a in axes]
    trials = [
        Trial(dict(zip(names, v, strict=True)), (score,)) for v, score in zip(grid, scores, strict=True)
    ]
    wider = [widen(a, sides.get(a.name, set())) for a in shared]
    grown, new = extra_trials(axes, trials, shared, wider, metric)
    assert all(list(hyper) == names for hyper in new)
    return [a.values for a in grown], [tuple(hyper.values()) for hyper in new]


def test_new_trials_go_to_the_best_values_of_an_arms_own_axes():
    # six trials each; a third learning rate brings the others three more, and this arm three of its own
    scores = [0.1, 0.2, 0.3, 0.9, 0.0, 0.1]
    axes, new = extra((LR, BETA), scores, (LR, WD), {"lr": {"high"}})
    assert axes == [(0.1, 1.0, 10.0), (1, 2, 3)]
    assert new == [(10.0, 1), (10.0, 3), (10.0, 2)]
    _, new = extra((LR, BETA), scores, (LR, WD), {"lr": {"high"}}, DOWN)
    assert [beta for _, beta in new] == [2, 1, 3]
    # where both sides grow, the best setting comes first with both
    _, new = extra((LR, BETA), scores, (Axis("lr", (0.1, 1.0)), Axis("wd", (0, 1))), {"lr": {"low", "high"}})
    assert new == [(0.01, 1), (10.0, 1), (0.01, 3), (10.0, 3)]


def test_an_arm_that_tries_part_of_an_axis_goes_on_from_its_own_end():
    shared = Axis("lr", (0.1, 1.0, 10.0))
    axes, new = extra((Axis("lr", (0.1,)), BETA), [0.0, 0.5, 0.1], (shared,), {"lr": {"high"}})
    assert (axes[0], new) == ((0.1, 1.0), [(1.0, 2)])
    axes, new = extra((Axis("lr", (0.1,)), BETA), [0.0, 0.5, 0.1], (shared,), {"lr": {"low"}})
    assert (axes[0], new) == ((0.01, 0.1), [(0.01, 2)])


def test_an_arm_without_the_axis_that_grows_gets_nothing():
    axes, new = extra((BETA, WD), [0.0] * 9, (LR, WD), {"lr": {"high"}})
    assert (axes, new) == ([BETA.values, WD.values], [])


def test_a_replication_has_tuning_seeds_of_its_own():
    seeds = replicate_tuning_seeds("adamp", 1, 1, 3)
    assert seeds == replicate_tuning_seeds("adamp", 1, 1, 5)[:3]
    assert len(set(seeds)) == 3
    assert min(seeds) > 99
    others = [("sam", 1, 1), ("adamp", 2, 1), ("adamp", 1, 2)]
    assert all(not set(seeds) & set(replicate_tuning_seeds(*other, 3)) for other in others)
    assert not set(seeds) & set(replicate_seeds("adamp", 1, 1, 1, 20))
