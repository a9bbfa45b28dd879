import pytest

from trueup.lab.spec import Axis, Metric
from trueup.lab.tuning import Trial, choose, edges, widen

UP, DOWN = Metric("acc", higher=True, worst=0.0), Metric("loss", higher=False, worst=10.0)


def test_the_best_mean_wins_and_ties_go_to_the_first():
    trials = [Trial({"lr": 1}, (0.1, 0.3)), Trial({"lr": 2}, (0.2, 0.2)), Trial({"lr": 3}, (0.0, 0.1))]
    assert choose(trials, UP).hyper == {"lr": 1}
    assert choose(trials, DOWN).hyper == {"lr": 3}
    assert choose(trials[1::-1], UP).hyper == {"lr": 2}


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
