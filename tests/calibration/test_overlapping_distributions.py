"""Distributions with overlaps: their probabilities against Bayes' rule, and their samples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from trueup.calibration import OverlappingClusters, OverlappingGaussians, paired_label_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bayes(point, clusters):
    """Apply Bayes' rule with SciPy's densities."""
    k, own = clusters.num_classes, 1 - clusters.overlap
    density = [
        stats.multivariate_normal(c, clusters.noise**2 * np.eye(clusters.dim)).pdf(point)
        for c in clusters.centers.numpy()
    ]
    joint = [own / k * density[y] + clusters.overlap / k * density[k + y // 2] for y in range(k)]
    return np.array(joint) / sum(joint)


# ---- clusters ----


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_the_posterior_is_bayes_rule(overlap):
    clusters = OverlappingClusters(6, 3, overlap, center_norm=1.5, noise=0.8, generator=generator())
    x, _ = clusters.sample(20, generator=generator(1))
    got = clusters.posterior(x.double())
    assert got.dtype == torch.float64
    want = np.array([bayes(point, clusters) for point in x.double().numpy()])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)


def test_the_posterior_is_the_frequency_of_the_labels():
    clusters = OverlappingClusters(4, 2, 0.4, center_norm=2.0, generator=generator())
    x, y = clusters.sample(40_000, generator=generator(1))
    p = clusters.posterior(x)
    one_hot = torch.nn.functional.one_hot(y, 4).double()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        chosen = (p >= low) & (p < low + 0.2)
        error = float((p[chosen] - one_hot[chosen]).mean())
        assert abs(error) < 4 * 0.5 / math.sqrt(int(chosen.sum()))


@pytest.mark.parametrize("overlap", [0.1, 0.6])
def test_points_are_shared_as_often_as_asked(overlap):
    n = 4000
    clusters = OverlappingClusters(4, 30, overlap, generator=generator())
    x, y = clusters.sample(n, generator=generator(1))
    nearest = torch.cdist(x.double(), clusters.centers).argmin(1)
    shared = nearest >= 4
    assert float(shared.double().mean()) == pytest.approx(overlap, abs=0.03)
    assert float((torch.where(shared, nearest - 4, nearest // 2) == y // 2).double().mean()) > 0.99
    assert float((y[shared] % 2).double().mean()) == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(y.bincount() / n, torch.full((4,), 0.25), rtol=0, atol=0.03)
    # Far apart, the best cross-entropy is log 2 on the shared part and 0 elsewhere.
    entropy = -torch.xlogy(p := clusters.posterior(x), p).sum(1).mean()
    assert float(entropy) == pytest.approx(overlap * math.log(2), abs=0.03)


def test_centers_have_their_norm_and_points_their_noise():
    clusters = OverlappingClusters(2, 5, 0.0, center_norm=3.0, noise=0.5, generator=generator())
    torch.testing.assert_close(clusters.centers.norm(dim=1), torch.full((3,), 3.0, dtype=torch.float64))
    x, y = clusters.sample(4000, generator=generator(1))
    rest = x.double() - clusters.centers[y]
    assert float(rest.std()) == pytest.approx(0.5, abs=0.01)
    assert float(rest.mean(0).abs().max()) < 0.05


def test_far_points_have_a_posterior():
    clusters = OverlappingClusters(4, 3, 0.5, generator=generator())
    p = clusters.posterior(torch.full((1, 3), 1e4))
    torch.testing.assert_close(p.sum(1), torch.ones(1, dtype=torch.float64))


def test_partners_are_equally_likely_if_everything_overlaps():
    clusters = OverlappingClusters(4, 3, 1.0, generator=generator())
    p = clusters.posterior(clusters.sample(10, generator=generator(1))[0])
    torch.testing.assert_close(p[:, 0::2], p[:, 1::2])


# ---- Gaussians ----


def test_the_posterior_of_two_gaussians_is_a_logistic_function():
    gaussians = OverlappingGaussians(0.05)
    x, y = gaussians.sample(50, generator=generator())
    assert x.shape == (50, 3, 10, 10)
    want = torch.sigmoid(0.05 * x.double().flatten(1).sum(1) - 300 * 0.05**2 / 2)
    torch.testing.assert_close(gaussians.posterior(x)[:, 1], want)
    torch.testing.assert_close(gaussians.posterior(x).sum(1), torch.ones(50, dtype=torch.float64))
    assert set(y.tolist()) == {0, 1}


def test_gaussians_have_the_means_of_their_classes():
    x, y = OverlappingGaussians(0.25, shape=(4,)).sample(20_000, generator=generator())
    for label in (0, 1):
        part = x[y == label]
        torch.testing.assert_close(part.mean(0), torch.full((4,), 0.25 * label), rtol=0, atol=0.04)
        torch.testing.assert_close(part.std(0), torch.ones(4), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "law", [OverlappingClusters(4, 3, 0.5, generator=generator()), OverlappingGaussians()]
)
def test_the_generator_decides(law):
    a, b = (law.sample(6, generator=generator(1)) for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a[0], law.sample(6, generator=generator(2))[0])
    assert a[0].dtype == torch.float32
    half = law.posterior(a[0].bfloat16())
    torch.testing.assert_close(half, law.posterior(a[0].bfloat16().double()))


# ---- label noise ----


def test_labels_move_to_one_partner_at_the_rate():
    y = torch.arange(20_000) % 5
    noisy, partner = paired_label_noise(y, 5, 0.3, generator=generator())
    assert bool((partner != torch.arange(5)).all())
    moved = noisy != y
    assert float(moved.double().mean()) == pytest.approx(0.3, abs=0.02)
    assert bool((noisy[moved] == partner[y[moved]]).all())
    for label in range(5):
        assert float(moved[y == label].double().mean()) == pytest.approx(0.3, abs=0.04)


def test_every_other_class_can_be_the_partner():
    found = [
        paired_label_noise(torch.tensor([0]), 3, 0.0, generator=generator(s))[1].tolist() for s in range(60)
    ]
    for label in range(3):
        assert {partner[label] for partner in found} == {0, 1, 2} - {label}


def test_the_ends_of_the_rate():
    y = torch.arange(6) % 3
    same, _ = paired_label_noise(y, 3, 0.0)
    assert torch.equal(same, y)
    noisy, partner = paired_label_noise(y, 3, 1.0)
    assert torch.equal(noisy, partner[y])


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((3, 4, 0.1), ValueError, "num_classes must be even"),
        ((0, 4, 0.1), ValueError, "num_classes must be at least 2"),
        ((4.0, 4, 0.1), TypeError, "num_classes must be an int"),
        ((4, 0, 0.1), ValueError, "dim must be at least 1"),
        ((4, 4, 1.1), ValueError, r"overlap must be in \[0, 1\]"),
        ((4, 4, "half"), TypeError, "overlap must be a number"),
    ],
)
def test_clusters_refuse(arguments, error, match):
    with pytest.raises(error, match=match):
        OverlappingClusters(*arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["center_norm", "noise"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_clusters_refuse_lengths(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
        OverlappingClusters(4, 4, 0.1, **{name: value})


@pytest.mark.bad_input
def test_gaussians_refuse():
    with pytest.raises(ValueError, match="separation must be a finite number > 0"):
        OverlappingGaussians(0.0)
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="shape must hold at least one size"):
            OverlappingGaussians(shape=shape)


@pytest.mark.bad_input
@pytest.mark.parametrize("law", [OverlappingClusters(4, 3, 0.5), OverlappingGaussians(shape=(3, 2))])
def test_samples_and_points_are_checked(law):
    with pytest.raises(ValueError, match="n must be at least 1"):
        law.sample(0)
    with pytest.raises(ValueError, match=r"points must be \(n, 3"):
        law.posterior(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="points must be floating point"):
        law.posterior(law.sample(2)[0].long())


@pytest.mark.bad_input
def test_label_noise_refuses():
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
        paired_label_noise(y, 2, 1.5)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        paired_label_noise(y, 1, 0.5)
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\)"):
        paired_label_noise(y + 1, 2, 0.5)
    with pytest.raises(TypeError, match="class indices"):
        paired_label_noise(y.float(), 2, 0.5)
