"""Vector and matrix scaling: the minimum of a convex loss."""

from __future__ import annotations

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from trueup.calibration import MatrixScaler, VectorScaler
from trueup.calibration._affine_scaling import affine_nll


def data(n=500, classes=3, size=1.0):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    scores = logits * torch.linspace(0.3, 1, classes) + torch.linspace(-1, 1, classes)
    return size * logits, scores.softmax(1).multinomial(1, generator=generator)[:, 0]


def loss(scaler, logits, target, weight=None, bias=None):
    weight = torch.from_numpy(scaler.weight_) if weight is None else weight
    matrix = weight.diag() if weight.dim() == 1 else weight
    return affine_nll(
        logits, target, matrix, torch.from_numpy(scaler.bias_) if bias is None else bias, scaler.ridge
    )


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("kind", [VectorScaler, MatrixScaler])
def test_the_gradient_of_the_equation_is_zero(kind, ridge, size):
    logits, target = data(size=size)
    scaler = kind(ridge=ridge).fit(logits, target)
    weight, bias = (torch.from_numpy(a).requires_grad_() for a in (scaler.weight_, scaler.bias_))
    gradients = torch.autograd.grad(loss(scaler, logits, target, weight, bias), (weight, bias))
    assert float(gradients[0].abs().max()) < 1e-8 * max(size, 1)
    assert float(gradients[1].abs().max()) < 1e-8
    assert scaler.bias_.sum() == pytest.approx(0, abs=1e-8)


def test_a_sum_over_chunks_is_the_whole(monkeypatch):
    logits, target = data(100)
    whole = MatrixScaler().fit(logits, target)
    monkeypatch.setattr("trueup._numerics.chunking.chunk_size", lambda x, elements, total: 30)
    chunked = MatrixScaler().fit(logits, target)
    torch.testing.assert_close(torch.from_numpy(chunked.weight_), torch.from_numpy(whole.weight_))


def test_more_parameters_fit_better_and_keep_softmax_invariants():
    logits, target = data()
    vector, matrix = VectorScaler().fit(logits, target), MatrixScaler().fit(logits, target)
    assert matrix.score(logits, target) > vector.score(logits, target)
    torch.testing.assert_close(torch.from_numpy(matrix.weight_).sum(0), torch.ones(3, dtype=torch.float64))
    mapped = logits @ torch.from_numpy(matrix.weight_).mT + torch.from_numpy(matrix.bias_)
    torch.testing.assert_close(matrix.transform(logits), mapped)


def test_an_infinite_penalty_leaves_the_identity():
    logits, target = data()
    torch.testing.assert_close(MatrixScaler(ridge=1e9).fit(logits, target).transform(logits), logits)


@pytest.mark.parametrize("kind", [VectorScaler, MatrixScaler])
def test_separable_data_warn_and_a_penalty_helps(kind):
    logits, target = 5 * torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    with pytest.warns(ConvergenceWarning, match="separates the classes.*ridge"):
        assert kind().fit(logits, target).predict_proba(logits).isfinite().all()
    kind(ridge=0.1).fit(logits, target)


def test_too_few_iterations_warn():
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 iterations"):
        MatrixScaler(max_iter=2).fit(*data())


@pytest.mark.bad_input
def test_bad_parameters():
    logits, target = data()
    for ridge in (-1, torch.inf, "l2"):
        with pytest.raises(ValueError, match="ridge must be"):
            VectorScaler(ridge=ridge).fit(logits, target)
    for max_iter in (0, 1.5):
        with pytest.raises(ValueError, match="max_iter must be"):
            VectorScaler(max_iter=max_iter).fit(logits, target)
    with pytest.raises(ValueError, match="finite logits; got -inf"):
        VectorScaler().fit(logits.where(torch.arange(3) > 0, -torch.inf), target)


@pytest.mark.parametrize("scaler", [VectorScaler, MatrixScaler])
def test_logits_too_large_to_square_are_refused(scaler):
    logits = torch.tensor([[1e200, 0.0], [0.0, 1e200], [1e200, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="divide them by a constant"):
        scaler().fit(logits, torch.tensor([0, 1, 1]))
