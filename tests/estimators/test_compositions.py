"""The mathematics: equivalent routes, invariances the paper proves, gradients, shrinkage, bad input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trueup.estimators import _compositions as compositions
from trueup.estimators import alr, clr, ilr, partial_correlation, variation_matrix


def samples(n=40, parts=6, seed=0):
    """Correlated log-normal parts with arbitrary row sums."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.standard_normal((n, parts)) @ rng.standard_normal((parts, parts)) / 2)


def tensor(**kwargs):
    return torch.from_numpy(samples(**kwargs))


def ordinary(covariance):
    """Ordinary partial correlations, by the inverse."""
    precision = np.linalg.inv(covariance)
    scale = np.sqrt(precision.diagonal())
    result = -precision / np.outer(scale, scale)
    np.fill_diagonal(result, 1)
    return result


def regress(y, others):
    """Residuals of y after regression with intercept."""
    design = np.column_stack([np.ones(len(y)), *others])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


# --- equivalent routes ---


@pytest.mark.parametrize("reference", range(6))
def test_alr_route_is_the_same_for_every_reference(reference):
    X = tensor()
    others = [part for part in range(6) if part != reference]
    expected = ordinary(np.cov(alr(X, reference=reference).numpy(), rowvar=False))
    np.testing.assert_allclose(partial_correlation(X)[np.ix_(others, others)], expected, atol=1e-10)


def test_correlations_of_log_ratios_are_not():
    X = tensor()
    first = [np.corrcoef(alr(X, reference=r).numpy()[:, :2], rowvar=False)[0, 1] for r in (4, 5)]
    assert abs(first[0] - first[1]) > 0.05


def test_residuals_of_regressions_for_every_pair_and_reference():
    X = samples(n=25, parts=5)
    L = np.log(X)
    ours = partial_correlation(torch.from_numpy(X)).numpy()
    for i, j in itertools.combinations(range(5), 2):
        for r in set(range(5)) - {i, j}:
            given_rest = [L[:, k] - L[:, r] for k in range(5) if k not in (i, j, r)]
            residuals = [regress(L[:, part] - L[:, r], given_rest) for part in (i, j)]
            assert ours[i, j] == pytest.approx(np.corrcoef(*residuals)[0, 1], abs=1e-10)


def test_ilr_route():
    X = tensor()
    contrasts = ilr(
        torch.eye(6, dtype=torch.float64).exp()
    )  # linear in the logs, so this is the basis itself
    torch.testing.assert_close(contrasts.mT @ contrasts, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(clr(X) @ contrasts, ilr(X))
    covariance, _ = compositions.log_ratio_covariance(X)
    expected = contrasts @ torch.linalg.inv(torch.cov(ilr(X).mT)) @ contrasts.mT
    precision, _ = compositions.log_ratio_precision(covariance)
    torch.testing.assert_close(precision, expected)


def test_precision_is_the_pseudo_inverse():
    covariance, _ = compositions.log_ratio_covariance(tensor())
    precision, condition = compositions.log_ratio_precision(covariance)
    torch.testing.assert_close(precision, torch.linalg.pinv(covariance, hermitian=True, rtol=1e-10))
    torch.testing.assert_close(
        condition, torch.linalg.matrix_norm(covariance, 1) * torch.linalg.matrix_norm(precision, 1)
    )
    _, of_batch = compositions.log_ratio_precision(covariance.expand(2, -1, -1))
    torch.testing.assert_close(of_batch, condition.expand(2))


@pytest.mark.parametrize("n", [7, 32, 33, 1024, 1025, 2500])
@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_the_two_covariance_routes_are_equal(n, assume_centered, ddof):
    X = tensor(n=n, parts=5) * torch.arange(1, 6)
    options = {"ddof": ddof, "assume_centered": assume_centered}
    blas, _ = compositions.log_ratio_covariance(X, **options)
    plain, _ = compositions.log_ratio_covariance(X.clone().requires_grad_(), **options)
    torch.testing.assert_close(blas, plain.detach(), rtol=1e-12, atol=1e-12)
    if not assume_centered:
        np.testing.assert_allclose(blas, np.cov(clr(X).numpy(), rowvar=False, ddof=ddof), atol=1e-12)
    else:
        np.testing.assert_allclose(blas, clr(X).numpy().T @ clr(X).numpy() / (n - ddof), atol=1e-12)


def test_sorted_samples_lose_no_digits():
    X = tensor(n=3000, parts=4)
    drift = torch.linspace(0, 30, 3000, dtype=torch.float64).exp()[:, None] ** torch.tensor([1.0, 0, 0, 0])
    covariance, _ = compositions.log_ratio_covariance(X * drift)
    np.testing.assert_allclose(covariance, np.cov(clr(X * drift).numpy(), rowvar=False), rtol=1e-10)


@pytest.mark.parametrize("parts", [3, 255, 256, 257, 600])
def test_matrices_larger_than_a_tile(parts):
    X = tensor(n=parts + 50, parts=parts, seed=parts)
    ours = partial_correlation(X)
    batched = partial_correlation(X[None])[0]
    assert torch.equal(ours, ours.mT)
    torch.testing.assert_close(ours, batched, rtol=0, atol=1e-8)


# --- invariances ---


@given(
    hnp.arrays(np.float64, (12, 4), elements=st.floats(1e-3, 1e3)),
    hnp.arrays(np.float64, (12, 1), elements=st.floats(1e-6, 1e6)),
    st.permutations(range(4)),
)
@settings(max_examples=50, deadline=None)
def test_row_scale_and_order_of_parts_change_nothing(X, factors, order):
    noise = np.random.default_rng(0).standard_normal(X.shape)
    X = X * np.exp(noise)  # far from rank loss, whatever hypothesis drew
    ours = partial_correlation(torch.from_numpy(X)).numpy()
    rescaled = partial_correlation(torch.from_numpy(X * factors)).numpy()
    permuted = partial_correlation(torch.from_numpy(X[:, order])).numpy()
    np.testing.assert_allclose(rescaled, ours, atol=1e-6)
    np.testing.assert_allclose(permuted, ours[np.ix_(order, order)], atol=1e-6)
    assert np.all(np.abs(ours) <= 1 + 1e-12)
    np.testing.assert_array_equal(ours.diagonal(), 1)


def test_units_of_parts_change_nothing():
    X = tensor()
    torch.testing.assert_close(partial_correlation(X * torch.arange(1, 7)), partial_correlation(X))


def test_it_is_not_subcompositionally_coherent():
    X = tensor()
    assert (partial_correlation(X)[1:, 1:] - partial_correlation(X[:, 1:])).abs().max() > 0.05


def test_variation_matrix_is_the_variance_of_every_log_ratio():
    X = samples()
    expected = np.var(np.log(X[:, :, None] / X[:, None, :]), axis=0, ddof=1)
    np.testing.assert_allclose(variation_matrix(torch.from_numpy(X)), expected, atol=1e-12)
    expected = np.var(np.log(X[:, :, None] / X[:, None, :]), axis=0)
    np.testing.assert_allclose(variation_matrix(torch.from_numpy(X), ddof=0), expected, atol=1e-12)


def test_variation_of_nearly_proportional_parts_keeps_its_digits():
    X = samples(n=50, parts=3)
    X[:, 1] = X[:, 0] * np.exp(1e-7 * np.random.default_rng(1).standard_normal(50))
    expected = np.var(np.log(X[:, 0] / X[:, 1]), ddof=1)
    assert variation_matrix(torch.from_numpy(X))[0, 1].item() == pytest.approx(expected, rel=1e-5)


# --- batches and gradients ---


@pytest.mark.parametrize("shrinkage", [None, "basis", "clr", 0.3])
def test_batches(shrinkage):
    X = torch.stack([tensor(seed=seed) for seed in range(6)]).reshape(2, 3, 40, 6)
    batched = partial_correlation(X, shrinkage=shrinkage)
    assert batched.shape == (2, 3, 6, 6)
    for index in itertools.product(range(2), range(3)):
        torch.testing.assert_close(batched[index], partial_correlation(X[index], shrinkage=shrinkage))
    for function in (clr, alr, ilr, variation_matrix):
        torch.testing.assert_close(function(X)[1, 2], function(X[1, 2]))


@pytest.mark.parametrize("shrinkage", [None, "basis", "clr", 0.3])
def test_gradients(shrinkage):
    X = tensor(n=7, parts=4).requires_grad_()
    # A unit diagonal is constant; the entries above it are the function.
    above = torch.triu_indices(4, 4, 1)

    def function(X):
        return partial_correlation(X, shrinkage=shrinkage)[above[0], above[1]]

    assert torch.autograd.gradcheck(function, X)
    assert torch.autograd.gradgradcheck(function, X, atol=1e-4)


def test_gradient_is_orthogonal_to_the_scale_of_a_sample():
    X = tensor(n=8, parts=4).requires_grad_()
    (gradient,) = torch.autograd.grad(partial_correlation(X).square().sum(), X)
    torch.testing.assert_close((gradient * X).sum(1), torch.zeros(8, dtype=torch.float64), atol=1e-10, rtol=0)


def test_torch_func_grad():
    X = tensor(n=8, parts=4)
    expected = X.clone().requires_grad_()
    partial_correlation(expected)[0, 1].backward()
    torch.testing.assert_close(torch.func.grad(lambda X: partial_correlation(X)[0, 1])(X), expected.grad)


def test_float32_is_computed_in_float64():
    X = tensor().float()
    assert partial_correlation(X).dtype == torch.float64
    torch.testing.assert_close(partial_correlation(X), partial_correlation(X.double()), rtol=0, atol=0)


def test_input_is_left_alone():
    X = tensor()
    before = X.clone()
    for function in (clr, alr, ilr, variation_matrix, partial_correlation):
        function(X)
        assert torch.equal(X, before)


# --- shrinkage ---


def shrunk_by_the_formula(values):
    """Schaefer and Strimmer's estimator as they write it, one entry at a time."""
    n, d = values.shape
    z = (values - values.mean(0)) / values.std(0, ddof=1)
    noise = distance = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                w = z[:, i] * z[:, j]
                noise += n / (n - 1) ** 3 * np.sum((w - w.mean()) ** 2)
                distance += (n / (n - 1) * w.mean()) ** 2
    of_correlations = min(1, max(0, noise / distance))
    variance = values.var(0, ddof=1)
    squares = (values - values.mean(0)) ** 2
    noise = n / (n - 1) ** 3 * np.sum((squares - squares.mean(0)) ** 2)
    of_variances = min(1, noise / np.sum((variance - np.median(variance)) ** 2))
    R = (1 - of_correlations) * np.corrcoef(values, rowvar=False)
    np.fill_diagonal(R, 1)
    v = of_variances * np.median(variance) + (1 - of_variances) * variance
    return R * np.sqrt(np.outer(v, v)), (of_correlations, of_variances)


@pytest.mark.parametrize(("n", "parts"), [(40, 6), (10, 7), (4, 12)])
def test_shrinkage_by_the_formula(n, parts):
    values = np.log(samples(n=n, parts=parts))
    expected, intensities = shrunk_by_the_formula(values)
    ours, ours_intensities = compositions.shrunk_covariance(torch.from_numpy(values))
    np.testing.assert_allclose(ours_intensities, intensities, rtol=1e-10)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    assert 0 < ours_intensities[0] <= 1


def test_intensity_falls_as_samples_come():
    few, many = (compositions.shrunk_covariance(tensor(n=n).log())[1][0] for n in (10, 1000))
    assert many < 0.1 < few


def test_no_intensity_is_no_shrinkage():
    X = tensor()
    torch.testing.assert_close(partial_correlation(X, shrinkage=0.0), partial_correlation(X))


def test_full_intensity_forgets_the_data():
    # Equal, uncorrelated log proportions: partial correlations are 1 / (D - 1), the closure's share.
    expected = torch.full((6, 6), 1 / 5, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(partial_correlation(tensor(), shrinkage=1.0), expected)


def test_basis_shrinkage_is_the_same_for_alr_and_clr():
    X = tensor(n=5, parts=7)
    basis, _ = compositions.shrunk_covariance((X / X.sum(1, keepdim=True)).log())
    F = torch.cat([torch.eye(6, dtype=torch.float64), -torch.ones(6, 1, dtype=torch.float64)], dim=1)
    expected = ordinary((F @ basis @ F.mT).numpy())
    np.testing.assert_allclose(partial_correlation(X, shrinkage="basis")[:-1, :-1], expected, atol=1e-10)


def test_clr_shrinkage_is_the_inverse_of_the_shrunk_covariance():
    X = tensor(n=5, parts=7)
    covariance, _ = shrunk_by_the_formula(clr(X).numpy())
    np.testing.assert_allclose(partial_correlation(X, shrinkage="clr"), ordinary(covariance), atol=1e-10)


def test_a_constant_variable_is_uncorrelated():
    values = tensor(n=10, parts=4).log()
    values[:, 2] = 3.0
    covariance, intensities = compositions.shrunk_covariance(values)
    assert covariance.isfinite().all()
    assert intensities.isfinite().all()
    assert (covariance[2, [0, 1, 3]] == 0).all()


def test_shrinkage_of_data_on_the_target():
    values = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    covariance, intensities = compositions.shrunk_covariance(values)
    torch.testing.assert_close(covariance, torch.eye(2, dtype=torch.float64) * 4 / 3)
    assert intensities.tolist() == [1.0, 1.0]


# --- bad input ---

FUNCTIONS = [clr, alr, ilr, variation_matrix, partial_correlation]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "found"), [(0.0, "0"), (-1.0, "-1"), (float("nan"), "NaN"), (float("inf"), "infinity")]
)
def test_values_that_have_no_logarithm(function, value, found):
    X = tensor()
    X[3, 2] = value
    with pytest.raises(ValueError, match=f"{function.__name__} needs positive finite parts; found {found}:"):
        function(X)


@pytest.mark.bad_input
@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_types_and_shapes(function):
    with pytest.raises(TypeError, match=r"floating-point tensor; got ndarray: pass torch.as_tensor"):
        function(samples())
    with pytest.raises(TypeError, match=r"got torch.int64"):
        function(torch.ones(4, 4, dtype=torch.int64))
    for shape in [(4,), (4, 1), (0, 3)]:
        with pytest.raises(ValueError, match=r"got shape \("):
            function(torch.ones(shape))


def test_too_little_data():
    with pytest.raises(ValueError, match=r"at least 3 parts; got 2: .* \+1 by construction"):
        partial_correlation(tensor(parts=2))
    with pytest.raises(ValueError, match="at least 3 samples; got 2"):
        partial_correlation(tensor(n=2), shrinkage="basis")
    with pytest.raises(ValueError, match="got 5 samples of 6 parts: pass shrinkage='basis'"):
        partial_correlation(tensor(n=5))
    with pytest.raises(ValueError, match="more than ddof=1 samples; got 1"):
        variation_matrix(tensor(n=1))
    with pytest.raises(IndexError, match="reference from -6 to 5; got 6"):
        alr(tensor(), reference=6)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1 / 3, 1e-6])
def test_constant_ratio_of_two_parts_is_refused(batched, factor):
    X = tensor()
    X[:, 1] = X[:, 4] * factor
    with pytest.raises(compositions.RankLossError, match="linearly dependent"):
        partial_correlation(X[None] if batched else X)
    assert partial_correlation(X, shrinkage="basis").isfinite().all()


def test_all_samples_equal():
    with pytest.raises(compositions.RankLossError):
        partial_correlation(torch.ones(10, 4))


def test_negative_reference():
    X = tensor()
    torch.testing.assert_close(alr(X, reference=-1), (X[:, :-1] / X[:, -1:]).log())
    torch.testing.assert_close(alr(X, reference=0), (X[:, 1:] / X[:, :1]).log())
    torch.testing.assert_close(alr(X, reference=-6), alr(X, reference=0))
