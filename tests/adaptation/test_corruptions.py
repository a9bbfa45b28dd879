"""Corruptions against loops over pixels and scipy, and their severities."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trueup.adaptation import CORRUPTIONS, corrupt
from trueup.adaptation import _corruptions as corruptions

IMAGENET_C = {
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "fog", "brightness", "contrast", "pixelate",
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, channels: int, side: int) -> Tensor:
    """Return smooth images with some texture."""
    smooth = F.interpolate(
        torch.rand(n, channels, 7, 7, generator=seeded(1)), (side, side), mode="bicubic", align_corners=False
    )
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=seeded(2))).clamp(0, 1)


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).flatten(1).norm(dim=1).mean())


def test_the_names() -> None:
    assert set(CORRUPTIONS) == IMAGENET_C


# From make_cifar_c.py and make_tinyimagenet_c.py, less what the head of the module says is ours.
PUBLISHED = {
    "gaussian_noise": ([0.04, 0.06, 0.08, 0.09, 0.10], [0.04, 0.08, 0.12, 0.15, 0.18]),
    "shot_noise": ([500, 250, 100, 75, 50], [250, 100, 50, 30, 15]),
    "impulse_noise": ([0.01, 0.02, 0.03, 0.05, 0.07], [0.01, 0.02, 0.05, 0.08, 0.14]),
    "defocus_blur": (
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)],
    ),
    "fog": (
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
    ),
    "brightness": ([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
    "contrast": ([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
}


@pytest.mark.parametrize("corruption", PUBLISHED)
@pytest.mark.parametrize(("side", "size"), [(28, 0), (48, 0), (49, 1), (64, 1)])
def test_severities_have_the_published_constants(corruption: str, side: int, size: int) -> None:
    x = pictures(1, 3, side)
    function = getattr(corruptions, corruption)
    for severity, constants in enumerate(PUBLISHED[corruption][size], 1):
        constants = constants if isinstance(constants, tuple) else (constants,)
        expected = function(x, *constants, seeded()).clamp(0, 1)
        assert torch.equal(corrupt(x, corruption, severity, generator=seeded()), expected)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (64, 1)])
def test_each_severity_is_farther_from_the_clean_image(corruption: str, side: int, channels: int) -> None:
    clean = pictures(40, channels, side)
    distances = [distance(corrupt(clean, corruption, s, generator=seeded()), clean) for s in (1, 2, 3, 4, 5)]
    assert distances[0] > 0
    assert all(b > 1.001 * a for a, b in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_range_shape_and_dtype(corruption: str, dtype: torch.dtype) -> None:
    clean = pictures(3, 3, 29)[..., :27].to(dtype)  # not square
    before = clean.clone()
    result = corrupt(clean, corruption, generator=seeded())
    assert result.dtype == dtype
    assert result.shape == clean.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert not torch.equal(result, clean)
    assert torch.equal(clean, before)
    transposed = clean.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(corrupt(transposed, corruption, generator=seeded()), result)
    assert corrupt(clean[:0], corruption).shape == (0, 3, 29, 27)
    assert corrupt(clean[:1], corruption).shape == (1, 3, 29, 27)


@pytest.mark.parametrize("corruption", sorted(IMAGENET_C - {"defocus_blur", "zoom_blur", "pixelate"}))
def test_seeds(corruption: str) -> None:
    clean = pictures(1, 1, 28).expand(2, -1, -1, -1)
    one, same, other = (corrupt(clean, corruption, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    random = corruption not in ("brightness", "contrast")
    assert torch.equal(one, other) is not random
    assert torch.equal(one[0], one[1]) is not random  # the images of a batch differ
    torch.manual_seed(3)
    globally = corrupt(clean, corruption)
    torch.manual_seed(3)
    assert torch.equal(corrupt(clean, corruption), globally)


@pytest.mark.parametrize(("side", "std", "photons", "share"), [(32, 0.10, 50, 0.07), (64, 0.18, 15, 0.14)])
def test_noise_has_the_published_strength(side: int, std: float, photons: int, share: float) -> None:
    gray = torch.full((100, 1, side, side), 0.5, dtype=torch.float64)
    noise = corrupt(gray, "gaussian_noise", generator=seeded())
    clipped = math.erf(0.5 / std / math.sqrt(2))  # hardly any value
    assert noise.std().item() == pytest.approx(std, rel=0.02 + 2 * (1 - clipped))
    assert noise.mean().item() == pytest.approx(0.5, abs=0.002)
    shot = corrupt(gray, "shot_noise", generator=seeded())
    assert (shot * photons - (shot * photons).round()).abs().max() < 1e-9
    dim = corrupt(gray / 5, "shot_noise", generator=seeded())
    assert dim.var().item() == pytest.approx(0.1 / photons, rel=0.03)
    impulse = corrupt(gray, "impulse_noise", generator=seeded())
    assert (impulse == 0).double().mean().item() == pytest.approx(share / 2, rel=0.05)
    assert (impulse == 1).double().mean().item() == pytest.approx(share / 2, rel=0.05)
    assert ((impulse == 0) | (impulse == 1) | (impulse == 0.5)).all()


def test_blurs_equal_scipy() -> None:
    x = pictures(2, 3, 17).double()
    blurred = corruptions._gaussian_blur(x, 0.7, 3)
    expected = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 0.7, 0.7), mode="nearest", radius=(0, 0, 3, 3))
    np.testing.assert_allclose(blurred, expected, atol=1e-12)
    # An odd kernel, to see that nothing is flipped or transposed.
    kernel = torch.arange(15, dtype=torch.float64).view(3, 5)
    expected = scipy.ndimage.correlate(x.numpy(), kernel.numpy()[None, None], mode="nearest")
    np.testing.assert_allclose(corruptions._filter(x, kernel), expected, atol=1e-12)


@pytest.mark.parametrize(("radius", "alias"), [(0.3, 0.4), (1, 0.2), (1.5, 0.1), (3, 0.1)])
def test_defocus_spreads_a_point_over_a_disk(radius: float, alias: float) -> None:
    x = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    x[0, 0, 7, 7] = 1
    disk = np.array([[(i - 7) ** 2 + (j - 7) ** 2 <= radius**2 for j in range(15)] for i in range(15)])
    expected = scipy.ndimage.gaussian_filter(disk / disk.sum(), alias, mode="constant", radius=1)
    result = corruptions.defocus_blur(x, radius, alias, None)
    np.testing.assert_allclose(result[0, 0], expected, atol=1e-12)


def test_glass_takes_pixels_from_nearby() -> None:
    x = torch.rand(4, 3, 12, 12, generator=seeded(), dtype=torch.float64)
    result = corruptions.glass_blur(x, 1e-3, 2.4, seeded(1))  # without a visible blur
    offsets: set[tuple[int, int]] = set()
    for n in range(4):
        for i in range(12):
            for j in range(12):
                same = (x[n] - result[n, :, i, j][:, None, None]).abs().amax(0) < 1e-9
                [(row, column)] = same.nonzero().tolist()
                offsets.add((row - i, column - j))
    assert offsets == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_motion_spreads_along_a_line() -> None:
    std, side = 2.0, 41
    x = torch.zeros(50, 1, side, side, dtype=torch.float64)
    x[:, :, 20, 20] = 1
    result = corruptions.motion_blur(x, std, seeded())
    angles = (torch.rand((50, 1, 1), generator=seeded(), dtype=torch.float64) - 0.5).flatten() * math.pi / 2
    weights = [math.exp(-((step / std) ** 2) / 2) for step in range(9)]
    for image, angle in zip(result, angles.tolist(), strict=True):
        expected = np.zeros((side, side))
        for step, weight in enumerate(weights):
            row, column = round(step * math.sin(angle)), round(step * math.cos(angle))
            expected[20 - row, 20 - column] += weight / sum(weights)
        np.testing.assert_allclose(image[0], expected, atol=1e-12)
    assert angles.abs().max() <= math.pi / 4


def test_zoom_equals_interpolation_about_the_center() -> None:
    x = pictures(1, 1, 20).double()[:, :, :14]
    image = x[0, 0].numpy()
    layers = [image]
    for factor in (1.0, 1.01, 1.02, 1.03, 1.04, 1.05):
        rows = (np.arange(14) - 6.5) / factor + 6.5
        columns = (np.arange(20) - 9.5) / factor + 9.5
        grid = np.meshgrid(rows, columns, indexing="ij")
        layers.append(scipy.ndimage.map_coordinates(image, grid, order=1))
    result = corruptions.zoom_blur(x, 1.05, None)
    np.testing.assert_allclose(result[0, 0], np.mean(layers, axis=0), atol=1e-12)


def test_fog_keeps_the_peak_and_veils_the_rest() -> None:
    amount, peak = 1.5, 0.8
    x = torch.full((6, 3, 28, 28), peak, dtype=torch.float64)
    result = corruptions.fog(x, amount, 1.75, seeded())
    assert torch.equal(result[:, 0], result[:, 2])  # gray
    np.testing.assert_allclose(result.amax((1, 2, 3)), peak)
    np.testing.assert_allclose(result.amin((1, 2, 3)), peak**2 / (peak + amount))
    assert not corrupt(torch.zeros(1, 1, 28, 28), "fog").any()
    smooth, rough = (corruptions.fog(x, amount, decay, seeded()) for decay in (3, 1.75))
    assert smooth.diff(dim=3).abs().mean() < 0.8 * rough.diff(dim=3).abs().mean()


def test_fog_halves_its_scale_at_amplitudes_that_fall_by_the_decay_twice() -> None:
    # The official map divides the amplitude in the square step and in the diamond step.
    generator = seeded()
    coarse, fine = (torch.rand(1, 1, side, side, generator=generator) for side in (2, 4))
    cloud = F.interpolate(coarse, (4, 4), mode="bilinear", align_corners=True) + fine / 9
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    result = corruptions.fog(torch.ones(1, 1, 4, 4), 1.0, 3, seeded())
    np.testing.assert_allclose(result, (1 + cloud) / 2, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*3 * [st.floats(0, 1, width=32)]), st.sampled_from([0.05, 0.3]))
def test_brightness_is_that_of_hsv(pixel: tuple[float, ...], amount: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + amount))
    x = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1)
    np.testing.assert_allclose(corruptions.brightness(x, amount, None).flatten(), expected, atol=1e-6)


def test_brightness_of_gray_and_contrast() -> None:
    x = pictures(2, 1, 28).double()
    np.testing.assert_allclose(corrupt(x, "brightness", 3), (x + 0.15).clamp(max=1))
    color = pictures(2, 3, 28).double()
    mean = color.mean((2, 3), keepdim=True)
    np.testing.assert_allclose(corrupt(color, "contrast", 5), 0.15 * color + 0.85 * mean, atol=1e-12)
    large = pictures(2, 1, 49).double()
    mean = large.mean((2, 3), keepdim=True)
    np.testing.assert_allclose(corrupt(large, "contrast", 5), 0.05 * large + 0.95 * mean, atol=1e-12)


def test_pixelate_averages_shared_areas() -> None:
    x = pictures(1, 1, 12).double()
    fine = np.kron(x[0, 0], np.ones((9, 9)))  # 108 = 12 * 9 = 9 * 12 cells of both grids
    cells = fine.reshape(9, 12, 9, 12).mean((1, 3))
    expected = np.kron(cells, np.ones((12, 12))).reshape(12, 9, 12, 9).mean((1, 3))
    np.testing.assert_allclose(corruptions.pixelate(x, 0.75, None)[0, 0], expected, atol=1e-12)
    noise = torch.rand(28, 28, generator=seeded(), dtype=torch.float64)  # 26.6 pixels are 26
    assert torch.linalg.matrix_rank(corruptions.pixelate(noise[None, None], 0.95, None)[0, 0]) == 26


@pytest.mark.parametrize(
    "corruption", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"]
)
def test_a_constant_image_has_nothing_to_blur(corruption: str) -> None:
    gray = torch.full((2, 3, 28, 28), 0.4, dtype=torch.float64)
    np.testing.assert_allclose(corrupt(gray, corruption, generator=seeded()), gray)


GOOD = torch.rand(2, 1, 28, 28, generator=seeded())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: corrupt(GOOD, "frost"),
            ValueError,
            "unknown corruption 'frost': choose one of gaussian_noise",
        ),
        (lambda: corrupt(GOOD, "fog", 0), ValueError, "severity must be 1, 2, 3, 4 or 5; got 0"),
        (lambda: corrupt(GOOD, "fog", 6), ValueError, "got 6"),
        (lambda: corrupt(GOOD, "fog", True), ValueError, "got True"),
        (lambda: corrupt(GOOD, "fog", 1.5), ValueError, "got 1.5"),
        (lambda: corrupt((GOOD * 255).byte(), "fog"), TypeError, "got torch.uint8: bytes become that by"),
        (lambda: corrupt(GOOD[0], "fog"), ValueError, r"must be \(N, C, H, W\); got shape \(1, 28, 28\)"),
        (
            lambda: corrupt(GOOD * 255, "fog"),
            ValueError,
            r"values in \[0, 1\]; got .* before you standardize",
        ),
        (lambda: corrupt(GOOD - 0.5, "fog"), ValueError, r"values in \[0, 1\]; got -0"),
        (lambda: corrupt(GOOD * math.nan, "fog"), ValueError, "got nan"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
