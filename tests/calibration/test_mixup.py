"""Mixup of a batch: against loops in NumPy, its special cases, its random draw and its errors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trueup.calibration import MixupLoss, mixup, mixup_batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def example(batch=5, classes=3, mix_size=3, shape=(4,), dtype=torch.float64, per_sample=False):
    g = generator(1)
    x = torch.randn(batch, *shape, generator=g, dtype=torch.float64).to(dtype)
    y = torch.randint(classes, (batch,), generator=g)
    weights = torch.rand(mix_size, *[batch] * per_sample, generator=g, dtype=torch.float64)
    perms = torch.stack([torch.randperm(batch, generator=g) for _ in range(mix_size - 1)])
    return x, y, weights / weights.sum(0), perms


# ---- the equation ----


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3)])
def test_every_sample_is_the_weighted_sum_that_a_loop_gives(per_sample, shape):
    x, y, weights, perms = example(shape=shape, per_sample=per_sample)
    mixed, soft = mixup(x, torch.eye(3, dtype=x.dtype)[y], weights, perms)
    rows = np.vstack([np.arange(5), perms.numpy()])
    for j in range(5):
        w = weights[:, j] if per_sample else weights
        want = sum(float(w[i]) * x.numpy()[rows[i, j]] for i in range(3))
        np.testing.assert_allclose(mixed[j].numpy(), want, rtol=1e-12, atol=1e-14)
        want = [sum(float(w[i]) for i in range(3) if y[rows[i, j]] == c) for c in range(3)]
        np.testing.assert_allclose(soft[j].numpy(), want, rtol=1e-12, atol=1e-14)


def test_the_loss_is_the_weighted_sum_of_cross_entropies():
    x, y, weights, perms = example(batch=6)
    mixed, soft = mixup(x, F.one_hot(y, 3).double(), weights, perms)
    logits = mixed @ torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    parts = [F.cross_entropy(logits, y), *(F.cross_entropy(logits, y[perm]) for perm in perms)]
    want = sum(w * part for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(F.cross_entropy(logits, soft), want)


def test_equal_weights_for_every_sample_are_weights_for_the_batch():
    x, y, weights, perms = example()
    one_hot = F.one_hot(y, 3).double()
    got = mixup(x, one_hot, weights[:, None].expand(3, 5), perms)
    torch.testing.assert_close(got, mixup(x, one_hot, weights, perms), rtol=0, atol=0)


def test_permuting_the_batch_permutes_the_mixture():
    x, y, weights, perms = example(per_sample=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = order.argsort()[perms[:, order]]
    got, _ = mixup(x[order], F.one_hot(y[order], 3).double(), weights[:, order], moved)
    torch.testing.assert_close(got, mixup(x, F.one_hot(y, 3).double(), weights, perms)[0][order])


def test_the_gradient_passes_to_samples_and_weights():
    x, y, weights, perms = example(per_sample=True)
    targets = F.one_hot(y, 3).double()
    assert torch.autograd.gradcheck(
        lambda x, w: mixup(x, targets, w, perms), (x.requires_grad_(), weights.requires_grad_())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_mixed_in_float32(dtype):
    x, y, weights, perms = example(batch=64, dtype=dtype)
    mixed, soft = mixup(x, F.one_hot(y, 3).to(dtype), weights, perms)
    want, want_soft = mixup(x.float(), F.one_hot(y, 3).float(), weights, perms)
    assert mixed.dtype == soft.dtype == dtype
    torch.testing.assert_close((mixed, soft), (want.to(dtype), want_soft.to(dtype)), rtol=0, atol=0)


def test_memory_format_and_arguments_are_left_alone():
    x, y, weights, perms = example(shape=(3, 4, 4))
    strided = x.to(memory_format=torch.channels_last)[:, :, ::2]
    before = strided.clone()
    got, _ = mixup(strided, F.one_hot(y, 3).double(), weights, perms)
    torch.testing.assert_close(got, mixup(strided.contiguous(), F.one_hot(y, 3).double(), weights, perms)[0])
    torch.testing.assert_close(strided, before, rtol=0, atol=0)


# ---- the random draw ----


def recovered(y, classes, **options):
    """Mix unit vectors, so that the mixture shows the weight of every sample."""
    return mixup_batch(torch.eye(len(y), dtype=torch.float64), y, classes, **options)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 7),
    mix_size=st.integers(1, 4),
    alpha=st.floats(0.05, 20),
    per_sample=st.booleans(),
    seed=st.integers(0, 10),
)
def test_mixtures_are_convex_and_use_every_sample_equally(batch, mix_size, alpha, per_sample, seed):
    y = torch.arange(batch) % 2
    rows, soft = recovered(
        y, 2, alpha=alpha, mix_size=mix_size, per_sample=per_sample, generator=generator(seed)
    )
    ones = torch.ones(batch, dtype=torch.float64)
    assert rows.min() >= 0
    torch.testing.assert_close(rows.sum(1), ones)
    torch.testing.assert_close(soft, rows @ F.one_hot(y, 2).double())
    assert (rows > 0).sum(1).max() <= mix_size
    if not per_sample:
        torch.testing.assert_close(rows.sum(0), ones)


def test_one_draw_for_the_batch_or_one_per_sample():
    y = torch.zeros(64, dtype=torch.long)
    own, _ = recovered(y, 1, mix_size=2, generator=generator())
    assert len(own.diagonal()[own.diagonal() < 1].unique()) == 1
    own, _ = recovered(y, 1, mix_size=2, per_sample=True, generator=generator())
    assert len(own.diagonal()[own.diagonal() < 1].unique()) > 50


@pytest.mark.parametrize(("mix_size", "alpha"), [(2, 1.0), (3, 0.5)])
def test_weights_have_the_moments_of_a_dirichlet(mix_size, alpha):
    y = torch.arange(1000)
    rows, _ = recovered(y, 1000, mix_size=mix_size, alpha=alpha, per_sample=True, generator=generator(3))
    own = rows.diagonal()[(rows > 0).sum(1) == mix_size]  # where no permutation kept or repeated a sample
    d = mix_size
    assert float(own.mean()) == pytest.approx(1 / d, abs=0.04)
    assert float(own.var()) == pytest.approx((d - 1) / d**2 / (alpha * d + 1), rel=0.15)


def test_the_generator_decides_and_none_is_the_global_one():
    x, y, *_ = example(batch=8)
    a = mixup_batch(x, y, 3, generator=generator(5))
    b = mixup_batch(x, y, 3, generator=generator(5))
    c = mixup_batch(x, y, 3, generator=generator(6))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a[0], c[0])
    state = torch.get_rng_state()
    mixup_batch(x, y, 3, generator=generator(5))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    d = mixup_batch(x, y, 3)
    torch.manual_seed(2)
    torch.testing.assert_close(d, mixup_batch(x, y, 3), rtol=0, atol=0)


def test_a_small_alpha_mixes_little_and_a_large_one_evenly():
    y = torch.zeros(500, dtype=torch.long)
    options = {"mix_size": 3, "per_sample": True}
    least, _ = recovered(y, 1, alpha=0.01, generator=generator(), **options)
    most, _ = recovered(y, 1, alpha=1000.0, generator=generator(), **options)
    assert float((least.amax(1) > 0.99).double().mean()) > 0.9
    assert float((most.diagonal() - 1 / 3).abs().median()) < 0.05


# ---- the loss ----


@pytest.mark.parametrize("mix_size", [1, 2, 3])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_loss_is_that_of_the_mixed_batch(mix_size, per_sample):
    x, y, *_ = example(batch=8)
    options = {"alpha": 0.7, "mix_size": mix_size, "per_sample": per_sample}
    model = nn.Linear(4, 3, dtype=torch.float64)
    mixed, soft = mixup_batch(x, y, 3, generator=generator(4), **options)
    loss = MixupLoss(generator=generator(4), **options)
    got = torch.autograd.grad(loss(model, x, y), model.weight)
    want = torch.autograd.grad(F.cross_entropy(model(mixed), soft), model.weight)
    torch.testing.assert_close(got, want)


def test_nothing_is_mixed_in_evaluation_mode_alone_or_in_a_mixture_of_one():
    x, y, *_ = example(batch=8)
    model = nn.Linear(4, 3, dtype=torch.float64)
    plain = F.cross_entropy(model(x), y)
    torch.testing.assert_close(MixupLoss().eval()(model, x, y), plain)
    torch.testing.assert_close(MixupLoss(mix_size=1)(model, x, y), plain)
    torch.testing.assert_close(MixupLoss()(model, x[:1], y[:1]), F.cross_entropy(model(x[:1]), y[:1]))
    assert not torch.isclose(MixupLoss(generator=generator())(model, x, y), plain)


def test_a_criterion_of_soft_targets():
    x, y, *_ = example(batch=8)
    model = nn.Linear(4, 3, dtype=torch.float64)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    mixed, soft = mixup_batch(x, y, 3, generator=generator(4))
    got = MixupLoss(smooth, generator=generator(4))(model, x, y)
    torch.testing.assert_close(got, smooth(model(mixed), soft))
    torch.testing.assert_close(
        MixupLoss(lambda z, q: z.sum() + q.sum()).eval()(model, x, y), model(x).sum() + 8
    )


def test_maps_of_labels():
    images = torch.randn(4, 2, 5, 6, generator=generator(), dtype=torch.float64)
    y = torch.randint(3, (4, 5, 6), generator=generator())
    model = nn.Conv2d(2, 3, 1, dtype=torch.float64)
    mixed, soft = mixup_batch(images, y, 3, per_sample=True, generator=generator(1))
    assert soft.shape == (4, 3, 5, 6)
    torch.testing.assert_close(soft.sum(1), torch.ones(4, 5, 6, dtype=torch.float64))
    got = MixupLoss(per_sample=True, generator=generator(1))(model, images, y)
    torch.testing.assert_close(got, F.cross_entropy(model(mixed), soft))
    torch.testing.assert_close(MixupLoss().eval()(model, images, y), F.cross_entropy(model(images), y))


def test_the_model_is_called_once_on_mixed_samples_in_their_dtype():
    seen = []

    def model(x):
        seen.append(x)
        return x

    x = torch.randn(6, 3, generator=generator()).bfloat16()
    MixupLoss(generator=generator(1))(model, x, torch.arange(6) % 3)
    (mixed,) = seen
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(
        mixed, mixup_batch(x, torch.arange(6) % 3, 3, generator=generator(1))[0], rtol=0, atol=0
    )


def test_the_loss_is_no_part_of_the_model_and_can_be_copied():
    loss = MixupLoss(alpha=0.3, mix_size=4, per_sample=True)
    assert loss.state_dict() == {}
    assert repr(loss) == "MixupLoss(alpha=0.3, mix_size=4, per_sample=True)"
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert (again.alpha, again.mix_size, again.per_sample) == (0.3, 4, True)


def test_mixup_calibrates_an_interpolating_net_under_overlap():
    """On one point with both labels, a net that fits mixtures of the batch finds the frequencies."""
    x, y = torch.zeros(40, 2), (torch.arange(40) % 4 == 0).long()
    bias = torch.zeros(2, requires_grad=True)
    optimizer, loss = torch.optim.SGD([bias], 1.0), MixupLoss(generator=generator())
    for _ in range(60):
        optimizer.zero_grad()
        loss(lambda z: z + bias, x, y).backward()
        optimizer.step()
    torch.testing.assert_close(bias.softmax(0), torch.tensor([0.75, 0.25]), rtol=0, atol=1e-3)


# ---- bad input ----

X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options", [{"alpha": 0.0}, {"alpha": -1.0}, {"alpha": float("nan")}, {"alpha": float("inf")}]
)
def test_alpha_must_be_positive(options):
    with pytest.raises(ValueError, match="alpha must be a finite number > 0"):
        mixup_batch(X, Y, 2, **options)
    with pytest.raises(ValueError, match="alpha must be a finite number > 0"):
        MixupLoss(**options)


@pytest.mark.bad_input
def test_mix_size_must_be_a_number_of_samples():
    with pytest.raises(ValueError, match="mix_size must be at least 1; got 0"):
        mixup_batch(X, Y, 2, mix_size=0)
    with pytest.raises(TypeError, match="mix_size must be an int"):
        MixupLoss(mix_size=2.0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("x", "y", "error", "match"),
    [
        (X[:0], Y[:0], ValueError, "at least one sample"),
        (torch.tensor(1.0), torch.tensor(1), ValueError, "at least one sample"),
        (X, Y[:3], ValueError, "same number of samples"),
        (X, torch.tensor(1), ValueError, "same number of samples"),
        (X.long(), Y, TypeError, "x must be floating point; got torch.int64"),
        (X, Y.float(), TypeError, "y must be class labels; got torch.float32"),
    ],
)
def test_batches_must_be_samples_and_labels(x, y, error, match):
    with pytest.raises(error, match=match):
        mixup_batch(x, y, 2)
    with pytest.raises(error, match=match):
        MixupLoss()(nn.Linear(2, 2), x, y)


@pytest.mark.bad_input
def test_labels_must_be_in_range():
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\)"):
        mixup_batch(X, Y + 1, 2)
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\)"):
        mixup_batch(X, Y - 1, 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        mixup_batch(X, Y, 0)
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        MixupLoss()(nn.Linear(2, 2), X, Y + 1)


@pytest.mark.bad_input
def test_logits_must_fit_the_labels():
    with pytest.raises(ValueError, match=r"must return \(batch, classes, \*positions\); got \(4,\)"):
        MixupLoss()(lambda x: x[:, 0], X, Y)
    with pytest.raises(ValueError, match="move the classes to dimension 1"):
        MixupLoss()(lambda x: x.T, X, Y)


@pytest.mark.bad_input
def test_criterion_must_be_known():
    with pytest.raises(ValueError, match='criterion must be "cross_entropy" or a function'):
        MixupLoss("nll")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"soft_targets": torch.eye(3)}, "4 samples need as many soft targets; got 3"),
        ({"weights": torch.ones(3)}, r"need weights \(2,\) or \(2, 4\); got shape \(3,\)"),
        ({"weights": torch.ones(2, 3)}, r"need weights \(2,\) or \(2, 4\)"),
        ({"perms": torch.zeros(1, 3, dtype=torch.long)}, r"perms must be \(mix_size - 1, 4\)"),
    ],
)
def test_the_parts_of_a_mixture_must_fit(changed, match):
    given_parts = {
        "x": X,
        "soft_targets": torch.eye(4),
        "weights": torch.tensor([0.5, 0.5]),
        "perms": torch.arange(4)[None],
    }
    with pytest.raises(ValueError, match=match):
        mixup(**given_parts | changed)
    with pytest.raises(TypeError, match="soft_targets must be floating point"):
        mixup(**given_parts | {"soft_targets": torch.eye(4).long()})


def test_a_mixture_of_one_is_the_sample_itself_and_draws_nothing() -> None:
    x, y, model = torch.randn(8, 3), torch.arange(8) % 2, nn.Linear(3, 2)
    state = torch.get_rng_state()
    for per_sample in (False, True):
        mixed, targets = mixup_batch(x, y, 2, mix_size=1, per_sample=per_sample)
        assert torch.equal(mixed, x)
        assert torch.equal(targets, torch.eye(2)[y])
    MixupLoss().eval()(model, x, y)
    MixupLoss(mix_size=1)(model, x, y)
    assert torch.equal(torch.get_rng_state(), state)
