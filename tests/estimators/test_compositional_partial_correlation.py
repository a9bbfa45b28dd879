"""The estimator: attributes, tests and intervals, conditioning, zeros, plot, bad input."""

import pickle
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from trueup import data
from trueup.estimators import CompositionalPartialCorrelation, partial_correlation
from trueup.estimators import _compositions as compositions


def samples(n=40, parts=6, seed=0):
    rng = np.random.default_rng(seed)
    return np.exp(rng.standard_normal((n, parts)) @ rng.standard_normal((parts, parts)) / 2)


@pytest.fixture(scope="module")
def cups():
    pd = pytest.importorskip("pandas")
    table = data.load("roman-cups")
    return pd.DataFrame(table.X, columns=table.feature_names)


@pytest.fixture(scope="module")
def fitted(cups):
    return CompositionalPartialCorrelation().fit(cups)


# --- what fit finds ---


@pytest.mark.parametrize("shrinkage", [None, "clr", "basis", 0.4])
def test_attributes_agree_with_the_functions(shrinkage):
    X = samples()
    model = CompositionalPartialCorrelation(shrinkage=shrinkage).fit(X)
    values = torch.from_numpy(X)
    covariance, intensities = compositions.log_ratio_covariance(values, shrinkage=shrinkage)
    precision, condition = compositions.log_ratio_precision(covariance, shrinkage=shrinkage)
    np.testing.assert_allclose(model.covariance_, covariance, atol=1e-14)
    np.testing.assert_allclose(model.precision_, precision, rtol=1e-10)
    np.testing.assert_allclose(
        model.partial_correlation_, partial_correlation(values, shrinkage=shrinkage), atol=1e-14
    )
    np.testing.assert_allclose(model.partial_variance_, 1 / precision.diagonal(), rtol=1e-12)
    np.testing.assert_array_equal(model.shrinkage_, intensities)
    assert model.shrinkage_.tolist() == {None: [0, 0], 0.4: [0.4, 0.4]}.get(shrinkage, intensities.tolist())
    assert model.condition_number_ == pytest.approx(float(condition))
    assert (model.n_features_in_, model.n_samples_) == (6, 40)


def test_partial_variance_is_the_residual_variance_for_any_reference():
    X = samples(n=30, parts=4)
    L = np.log(X)
    model = CompositionalPartialCorrelation().fit(X)
    for j in range(4):
        for r in set(range(4)) - {j}:
            rest = [L[:, k] - L[:, r] for k in range(4) if k not in (j, r)]
            design = np.column_stack([np.ones(30), *rest])
            y = L[:, j] - L[:, r]
            residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
            assert model.partial_variance_[j] == pytest.approx(residual @ residual / 29)
            assert model.multiple_r2(r)[j] == pytest.approx(1 - residual.var() / y.var())
        assert model.multiple_r2(j)[j] == 0


def test_multiple_r2_depends_on_the_reference(fitted):
    assert abs(fitted.multiple_r2("Si")[1] - fitted.multiple_r2("Sb")[1]) > 0.01
    np.testing.assert_array_equal(fitted.multiple_r2("Si"), fitted.multiple_r2(0))


def test_divisor():
    X = samples()
    one, zero = (CompositionalPartialCorrelation(ddof=ddof).fit(X) for ddof in (1, 0))
    np.testing.assert_allclose(zero.covariance_, one.covariance_ * 39 / 40)
    np.testing.assert_allclose(zero.partial_correlation_, one.partial_correlation_)
    shrunk = [CompositionalPartialCorrelation(ddof=ddof, shrinkage="basis").fit(X) for ddof in (1, 0)]
    np.testing.assert_allclose(shrunk[1].covariance_, shrunk[0].covariance_ * 39 / 40)


def test_assume_centered():
    X = samples()
    C = np.log(X) - np.log(X).mean(1, keepdims=True)
    model = CompositionalPartialCorrelation(assume_centered=True, ddof=0).fit(X)
    np.testing.assert_allclose(model.covariance_, C.T @ C / 40)
    centred = np.exp(C - C.mean(0))
    np.testing.assert_allclose(
        CompositionalPartialCorrelation(assume_centered=True).fit(centred).covariance_,
        CompositionalPartialCorrelation().fit(X).covariance_,
    )


@pytest.mark.parametrize("shrinkage", [None, "basis", "clr"])
def test_rows_need_not_be_closed(shrinkage):
    X = samples()
    factors = np.exp(np.random.default_rng(1).standard_normal((40, 1)))
    first, second = (CompositionalPartialCorrelation(shrinkage=shrinkage).fit(Z) for Z in (X, X * factors))
    np.testing.assert_allclose(first.partial_correlation_, second.partial_correlation_, atol=1e-9)


def test_input_is_left_alone_and_may_be_read_only():
    X = samples()
    before = X.copy()
    X.flags.writeable = False
    CompositionalPartialCorrelation().fit(X)
    np.testing.assert_array_equal(X, before)


def test_more_parts_than_samples_with_shrinkage():
    model = CompositionalPartialCorrelation(shrinkage="basis").fit(samples(n=5, parts=12))
    assert np.all(np.abs(model.partial_correlation_) <= 1)
    assert 0 < model.shrinkage_[0] <= 1


def test_pickle_clone_and_refit(fitted, cups):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.partial_correlation_, fitted.partial_correlation_)
    assert not hasattr(clone(fitted), "partial_correlation_")
    smaller = pickle.loads(pickle.dumps(fitted)).fit(cups.iloc[:, :5])
    assert smaller.partial_correlation_.shape == (5, 5)
    assert list(smaller.feature_names_in_) == ["Si", "Al", "Fe", "Mg", "Ca"]


def test_roman_cups(fitted):
    strongest = [(e.first, e.second, round(e.partial_correlation, 3)) for e in fitted.edges(0.41)]
    assert strongest == [
        ("Al", "Fe", 0.727),
        ("Si", "Al", 0.722),
        ("Si", "Fe", -0.663),
        ("Ca", "Na", 0.597),
        ("Fe", "Mg", 0.428),
        ("K", "P", 0.413),
    ]


def test_edges(fitted):
    assert len(fitted.edges(0)) == 55
    assert fitted.edges(1) == []
    unnamed = CompositionalPartialCorrelation().fit(samples())
    edge = unnamed.edges(0)[0]
    assert edge.partial_correlation == unnamed.partial_correlation_[edge.first, edge.second]


# --- conditioning on chosen parts ---


def test_conditional_is_the_fit_of_the_subcomposition(cups, fitted):
    chosen = ["Fe", "Na", "Si", "Sb"]
    ours = fitted.conditional(chosen)
    alone = CompositionalPartialCorrelation().fit(cups[chosen])
    np.testing.assert_allclose(ours.partial_correlation_, alone.partial_correlation_, atol=1e-10)
    np.testing.assert_allclose(ours.covariance_, alone.covariance_, atol=1e-12)
    np.testing.assert_allclose(ours.test().pvalue, alone.test().pvalue, atol=1e-10)
    np.testing.assert_allclose(ours.multiple_r2("Na"), alone.multiple_r2("Na"), atol=1e-10)
    assert list(ours.feature_names_in_) == chosen
    assert [e[:2] for e in ours.edges(0.2)] == [e[:2] for e in alone.edges(0.2)]
    by_index = fitted.conditional([2, 5, 0, 10])
    np.testing.assert_array_equal(by_index.partial_correlation_, ours.partial_correlation_)


def test_conditional_on_one_part_is_the_correlation_of_log_ratios_to_it(cups, fitted):
    ours = fitted.conditional(["Al", "Fe", "Ca"]).partial_correlation_[0, 1]
    log_ratios = np.log(cups[["Al", "Fe"]].to_numpy() / cups[["Ca"]].to_numpy())
    assert ours == pytest.approx(np.corrcoef(log_ratios, rowvar=False)[0, 1])


def test_conditional_on_all_parts_is_the_full_one(cups, fitted):
    for model in (fitted, CompositionalPartialCorrelation(shrinkage="basis").fit(cups)):
        everything = model.conditional(list(cups.columns))
        np.testing.assert_allclose(everything.partial_correlation_, model.partial_correlation_, atol=1e-10)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["Si", "Al"], "three or more different parts"),
        (["Si", "Al", "Al"], "three or more different parts"),
        (["Si", "Al", "Xx"], "unknown part 'Xx': pass an index below 11 or one of"),
        ([0, 1, 11], "unknown part 11"),
        ([0, 1, -1], "unknown part -1"),
        ([0, 1, 2.0], "unknown part 2.0"),
        ([0, 2, True], "unknown part True"),
    ],
)
def test_conditional_on_wrong_parts(fitted, parts, message):
    with pytest.raises(ValueError, match=message):
        fitted.conditional(parts)


def test_conditional_after_clr_shrinkage():
    model = CompositionalPartialCorrelation(shrinkage="clr").fit(samples())
    with pytest.raises(ValueError, match="needs a covariance of log-ratios: fit with shrinkage='basis'"):
        model.conditional([0, 1, 2])


# --- tests and intervals ---


@pytest.mark.parametrize(("n", "parts"), [(15, 5), (60, 8)])
def test_pvalues_and_intervals_are_calibrated(n, parts):
    # Independent log-normal amounts of equal spread have partial correlation 1 / (D - 1) in every pair, not
    # 0, by closure. Test against that, through the same z and standard error, in 2,000 seeded repetitions.
    rng = np.random.default_rng(0)
    X = torch.from_numpy(np.exp(rng.standard_normal((2000, n, parts))))
    z = torch.atanh(partial_correlation(X)[:, 0, 1]).numpy()
    pivots = (z - np.arctanh(1 / (parts - 1))) * np.sqrt(n - parts)
    rejected = np.mean(2 * stats.norm.sf(np.abs(pivots)) < 0.05)
    assert abs(rejected - 0.05) < 0.015
    covered = 0
    for sample in X[:300].numpy():
        low, high = CompositionalPartialCorrelation().fit(sample).confidence_interval(0.9)
        covered += low[0, 1] <= 1 / (parts - 1) <= high[0, 1]
    assert abs(covered / 300 - 0.9) < 0.05


def independent_given_the_rest(n, parts, rng):
    """Compositions whose parts 0 and 1 have partial correlation zero: their entry of the precision is."""
    P = 2 * np.eye(parts) - 2 / parts
    P[0, 1] = P[1, 0] = 0.0
    P -= np.diag(P.sum(1))
    values, vectors = np.linalg.eigh(P)
    assert values[1] > 0.1
    return np.exp(rng.standard_normal((n, parts - 1)) / np.sqrt(values[1:]) @ vectors[:, 1:].T)


def test_pvalues_are_uniform_when_there_is_nothing():
    rng = np.random.default_rng(0)
    pvalues = [
        CompositionalPartialCorrelation().fit(independent_given_the_rest(30, 5, rng)).test(None).pvalue[0, 1]
        for _ in range(400)
    ]
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01
    assert abs(np.mean(np.array(pvalues) < 0.05) - 0.05) < 0.03


def test_test_by_the_formula(fitted):
    r = fitted.partial_correlation_
    result = fitted.test("bonferroni")
    above = np.triu_indices(11, 1)
    statistic = np.arctanh(r[above]) * np.sqrt(47 - 11)
    np.testing.assert_allclose(result.statistic[above], statistic)
    np.testing.assert_allclose(result.pvalue[above], 2 * stats.norm.sf(np.abs(statistic)))
    np.testing.assert_allclose(result.adjusted_pvalue[above], np.minimum(1, 55 * result.pvalue[above]))
    for method in ("bh", "by"):
        adjusted = fitted.test(f"fdr_{method}").adjusted_pvalue
        expected = stats.false_discovery_control(result.pvalue[above], method=method)
        np.testing.assert_allclose(adjusted[above], expected)
        np.testing.assert_array_equal(adjusted, adjusted.T)
    np.testing.assert_array_equal(fitted.test(None).adjusted_pvalue, result.pvalue)
    assert np.isnan(result.pvalue.diagonal()).all()
    assert np.isnan(result.statistic.diagonal()).all()


def test_interval_by_the_formula(fitted):
    low, high = fitted.confidence_interval(0.95)
    z = np.arctanh(fitted.partial_correlation_[1, 2])
    assert low[1, 2] == pytest.approx(np.tanh(z - 1.959964 / 6))
    assert high[1, 2] == pytest.approx(np.tanh(z + 1.959964 / 6))
    np.testing.assert_array_equal(low.diagonal(), 1)
    np.testing.assert_array_equal(high.diagonal(), 1)
    wider = fitted.confidence_interval(0.99)
    assert np.all(wider[0] <= low)
    assert np.all(fitted.partial_correlation_.diagonal() == 1)


# --- zeros ---


def with_zeros():
    X = samples(n=20, parts=4)
    X[3, 1] = X[7, 1] = X[7, 2] = 0
    return X


def test_min_replaces_by_the_smallest_entry_of_all():
    X = with_zeros()
    expected = np.where(X == 0, X[X > 0].min(), X)
    ours = CompositionalPartialCorrelation(zero_replace="min").fit(X)
    np.testing.assert_array_equal(
        ours.partial_correlation_, CompositionalPartialCorrelation().fit(expected).partial_correlation_
    )


def test_multiplicative_replacement_keeps_the_other_ratios_and_ignores_row_sums():
    X = with_zeros()
    closed = X / X.sum(1, keepdims=True)
    closed[3] *= 1 - 1 / 16
    closed[7] *= 1 - 2 / 16
    closed[3, 1] = closed[7, 1] = closed[7, 2] = 1 / 16
    np.testing.assert_allclose(closed.sum(1), 1)
    expected = CompositionalPartialCorrelation().fit(closed).partial_correlation_
    for factor in (1.0, np.arange(1.0, 21)[:, None]):
        ours = CompositionalPartialCorrelation(zero_replace="multiplicative").fit(X * factor)
        np.testing.assert_allclose(ours.partial_correlation_, expected, atol=1e-10)


@pytest.mark.parametrize("rule", ["min", "multiplicative"])
def test_rules_for_zeros_change_nothing_without_zeros(rule):
    X = samples()
    np.testing.assert_array_equal(
        CompositionalPartialCorrelation(zero_replace=rule).fit(X).partial_correlation_,
        CompositionalPartialCorrelation().fit(X).partial_correlation_,
    )


# --- plot ---


def test_plot_draws_every_edge_and_part(fitted):
    pytest.importorskip("plotly")
    figure = fitted.plot(0.3)
    edges = fitted.edges(0.3)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == len(edges)
    assert {line.line.dash for line in lines} == {"solid", "dot"}
    assert sum(line.line.dash == "dot" for line in lines) == sum(e.partial_correlation < 0 for e in edges)
    assert list(figure.data[-1].text) == list(fitted.feature_names_in_)
    hover = [text for trace in figure.data if trace.mode == "markers" for text in trace.hovertext or ()]
    assert "Al - Fe: +0.73" in hover
    assert "Si - Fe: -0.66" in hover
    # The stronger, the wider.
    assert max(lines, key=lambda line: line.line.width).line.width == pytest.approx(
        1 + 9 * abs(edges[0].partial_correlation)
    )


def test_plot_without_edges_or_names():
    pytest.importorskip("plotly")
    figure = CompositionalPartialCorrelation().fit(samples()).plot(1.0)
    assert list(figure.data[-1].text) == list("012345")


@pytest.mark.parametrize("module", ["plotly.graph_objects", "networkx"])
def test_plot_names_its_extra(fitted, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'trueup\[plot\]'"):
        fitted.plot()


# --- bad input ---


def test_zeros_name_their_parts(cups):
    broken = cups.copy()
    broken.loc[[1, 5], "Mn"] = 0
    with pytest.raises(
        ValueError, match=r"got 2 zeros, in parts \['Mn'\]: pass zero_replace='multiplicative'"
    ):
        CompositionalPartialCorrelation().fit(broken)
    broken.loc[1, "Mn"] = -0.5
    for rule in ("error", "min", "multiplicative"):
        with pytest.raises(ValueError, match=r"must be positive; got -0.5 in part 'Mn'"):
            CompositionalPartialCorrelation(zero_replace=rule).fit(broken)


def test_a_sample_of_zeros():
    X = samples()
    X[4] = 0
    with pytest.raises(ValueError, match=r"samples \[4\] are all zeros: leave them out"):
        CompositionalPartialCorrelation(zero_replace="min").fit(X)


def test_constant_ratio_names_the_parts(cups):
    broken = cups.assign(Sb=cups["Na"] * 0.1)
    with pytest.raises(ValueError, match=r"linearly dependent.*ratio of parts 'Na' and 'Sb' is constant"):
        CompositionalPartialCorrelation().fit(broken)
    assert CompositionalPartialCorrelation(shrinkage="basis").fit(broken).shrinkage_[0] > 0


def test_other_dependence_of_log_ratios():
    X = samples()
    X[:, 0] = np.sqrt(X[:, 1] * X[:, 2])
    with pytest.raises(ValueError, match=r"linearly dependent.*shrinkage='basis'.$"):
        CompositionalPartialCorrelation().fit(X)


def test_constant_columns_are_harmless_unless_all_are():
    X = samples()
    X[:, 2] = 5.0
    assert np.isfinite(CompositionalPartialCorrelation().fit(X).partial_correlation_).all()
    with pytest.raises(ValueError, match="linearly dependent"):
        CompositionalPartialCorrelation().fit(np.ones((20, 4)))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((10, 4), np.nan), "NaN"),
        (np.full((10, 4), np.inf), "infinity"),
        (np.ones(10), "1D array"),
        (np.ones((10, 2)), r"at least 3 parts; got n_features = 2: .* \+1 by construction"),
        (np.ones((10, 1)), "1 feature"),
        (np.ones((2, 4)), "2 sample"),
        (np.ones((5, 6)), "n_samples = 5, n_features = 6: pass shrinkage='basis'"),
        (np.ones((0, 4)), "0 sample"),
    ],
)
def test_data_that_cannot_be(X, message):
    with pytest.raises(ValueError, match=message):
        CompositionalPartialCorrelation().fit(X)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"shrinkage": "ridge"},
            "shrinkage must be None, 'clr', 'basis' or a number from 0 to 1; got 'ridge'",
        ),
        ({"shrinkage": 1.5}, "got 1.5"),
        ({"shrinkage": -0.1}, "got -0.1"),
        ({"shrinkage": float("nan")}, "got nan"),
        ({"shrinkage": True}, "got True"),
        ({"zero_replace": "drop"}, "zero_replace must be one of .* got 'drop'"),
        ({"ddof": 2}, "ddof must be 0 or 1; got 2"),
    ],
)
def test_parameters_that_cannot_be(parameters, message):
    with pytest.raises(ValueError, match=message):
        CompositionalPartialCorrelation(**parameters).fit(samples())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.edges(-0.1), r"threshold from 0 to 1; got -0.1"),
        (lambda m: m.plot(2), r"threshold from 0 to 1; got 2"),
        (lambda m: m.test("holm"), "needs a correction among .* got 'holm'"),
        (lambda m: m.confidence_interval(1.0), "level between 0 and 1; got 1.0"),
        (lambda m: m.confidence_interval(0.0), "level between 0 and 1; got 0.0"),
        (lambda m: m.multiple_r2("Xx"), "unknown part 'Xx'"),
    ],
)
def test_method_arguments_that_cannot_be(fitted, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted)


@pytest.mark.parametrize("method", ["test", "confidence_interval"])
def test_no_tests_after_shrinkage_or_without_freedom(method):
    with pytest.raises(ValueError, match=f"{method} needs a fit without shrinkage"):
        getattr(CompositionalPartialCorrelation(shrinkage="basis").fit(samples()), method)()
    getattr(CompositionalPartialCorrelation(shrinkage=0.0).fit(samples()), method)()  # none, as with None
    with pytest.raises(ValueError, match=f"{method} needs more samples than parts; got 6 samples of 6 parts"):
        getattr(CompositionalPartialCorrelation().fit(samples(n=6)), method)()


@pytest.mark.parametrize("method", ["test", "confidence_interval", "plot"])
def test_methods_need_a_fit(method):
    with pytest.raises(NotFittedError):
        getattr(CompositionalPartialCorrelation(), method)()
    with pytest.raises(NotFittedError):
        CompositionalPartialCorrelation().conditional([0, 1, 2])
    with pytest.raises(NotFittedError):
        CompositionalPartialCorrelation().multiple_r2(0)
    assert not hasattr(CompositionalPartialCorrelation(), "precision_")
