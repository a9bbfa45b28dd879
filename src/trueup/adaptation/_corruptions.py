"""Corruptions of images at five severities, as in ImageNet-C, computed on tensors.

Problem: a model that is right on clean test data fails under noise, blur, weather and digital errors. Tests
of robustness and of test-time adaptation need such shifts of known strength, for any data set. Idea: corrupt
clean images by 11 of ImageNet-C's 15 corruptions, with the published constants for the nearest image size:
those of CIFAR-10-C up to 48 pixels, and of Tiny ImageNet-C above.

Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019, arXiv 1903.12261. Departures from the official code, which calls image libraries for each image:

- No rounding to 8 bits. Borders are replicated in every blur.
- Glass blur: each pixel comes from a random place nearby, where the official code swaps pixels in raster
  order. The largest shifts are ours.
- Motion blur: the one-sided Gaussian of the official code, in steps of whole pixels. Its severities 3 and 4
  for CIFAR-10-C are the same, since the Gaussian ends before the radius that differs; our 4 lies between.
- Pixelate: shrinks and enlarges by exact shared areas. Severities 2 and 3 for CIFAR-10-C are ours: the
  official ones, 0.9 and 0.85, are no stronger than severity 1 at 28 pixels.
- Zoom blur: bilinear, about the exact center.
- Fog: octaves of interpolated noise with the amplitudes of the official diamond-square map.
- Left out: frost (needs photographs), snow, elastic transformation and JPEG.

With one set of random numbers each severity is farther from the clean image than the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.upcasting import upcast

__all__ = ["CORRUPTIONS", "corrupt"]

# Where CIFAR-10-C's constants end and Tiny ImageNet-C's begin, in pixels: halfway between 32 and 64.
LARGEST_CIFAR_SIDE = 48


def gaussian_noise(x: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """Add normal noise to each value."""
    return x + std * _randn_like(x, generator)


def shot_noise(x: Tensor, photons: float, generator: torch.Generator | None) -> Tensor:
    """Count photons, of which a white pixel sends `photons` on average."""
    return torch.poisson(x * photons, generator) / photons


def impulse_noise(x: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
    """Set a share `amount` of the values to 0 or 1, half of them each."""
    u = _rand(x.shape, x, generator)
    return x.masked_fill(u < amount, 1.0).masked_fill(u < amount / 2, 0.0)


def defocus_blur(x: Tensor, radius: float, alias: float, generator: torch.Generator | None) -> Tensor:
    """Average over a disk, whose edge a 3 x 3 Gaussian smooths."""
    side = torch.arange(-math.ceil(radius) - 1, math.ceil(radius) + 2, dtype=x.dtype, device=x.device)
    disk = (side[:, None].square() + side.square() <= radius**2).to(x.dtype)
    kernel = _gaussian_blur((disk / disk.sum())[None, None], alias, 1)[0, 0]
    return _filter(x, kernel)


def glass_blur(x: Tensor, std: float, largest_shift: float, generator: torch.Generator | None) -> Tensor:
    """Take each pixel from a random place within `largest_shift` pixels, between two slight blurs."""
    radius = math.ceil(4 * std)
    x = _gaussian_blur(x, std, radius)
    shift = (2 * _rand((2, len(x), *x.shape[2:]), x, generator) - 1) * largest_shift
    return _gaussian_blur(_shifted(x, shift[0], shift[1]), std, radius)


def motion_blur(x: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """Average along a line from each pixel, in one direction per image, within 45 degrees of horizontal."""
    angle = (_rand((len(x), 1, 1), x, generator) - 0.5) * (math.pi / 2)
    weights = [math.exp(-0.5 * (step / std) ** 2) for step in range(math.ceil(4 * std) + 1)]
    total = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        total += (weight / sum(weights)) * _shifted(x, step * angle.sin(), step * angle.cos())
    return total


def zoom_blur(x: Tensor, largest: float, generator: torch.Generator | None) -> Tensor:
    """Average the image and its enlargements, in steps of 1 %, up to the factor `largest`."""
    count = round((largest - 1) * 100) + 1
    total = x.clone()
    for factor in (1 + i / 100 for i in range(count)):
        vertical, horizontal = (_zoom_matrix(side, factor, x) for side in x.shape[2:])
        total += vertical @ x @ horizontal.T
    return total / (count + 1)


def fog(x: Tensor, amount: float, decay: float, generator: torch.Generator | None) -> Tensor:
    """Add a cloud to each image, and scale the result back to the image's largest value."""
    n, _, height, width = x.shape
    cloud = x.new_zeros((n, 1, height, width))
    for octave in range(1, max(1, math.ceil(math.log2(max(height, width)))) + 1):
        noise = _rand((n, 1, 2**octave, 2**octave), x, generator) * decay ** (-2 * (octave - 1))
        cloud += F.interpolate(noise, (height, width), mode="bilinear", align_corners=True)
    cloud -= cloud.amin((2, 3), keepdim=True)
    cloud /= cloud.amax((2, 3), keepdim=True).clamp(min=1e-12)  # an image of one pixel
    peak = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * cloud) * peak / (peak + amount)


def brightness(x: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
    """Add to the value of hue, saturation and value; gray images: to the gray level."""
    value = x.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value), brighter)


def contrast(x: Tensor, factor: float, generator: torch.Generator | None) -> Tensor:
    """Shrink the differences from the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def pixelate(x: Tensor, factor: float, generator: torch.Generator | None) -> Tensor:
    """Shrink the image to large square pixels and enlarge it, both by the areas that pixels share."""
    vertical, horizontal = (_pixel_matrix(side, int(side * factor), x) for side in x.shape[2:])
    return vertical @ x @ horizontal.T


# Per corruption: its function, and the constants of severities 1 to 5 in CIFAR-10-C and in Tiny ImageNet-C.
_TABLE: dict[str, tuple[Callable[..., Tensor], tuple[object, ...], tuple[object, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.04, 0.08, 0.12, 0.15, 0.18)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50), (250, 100, 50, 30, 15)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.01, 0.02, 0.05, 0.08, 0.14)),
    "defocus_blur": (
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    ),
    "glass_blur": (
        glass_blur,
        ((0.05, 0.6), (0.25, 0.75), (0.4, 1.2), (0.4, 1.6), (0.4, 2.4)),
        ((0.1, 0.75), (0.5, 2.0), (0.6, 3.0), (0.7, 4.0), (0.9, 5.5)),
    ),
    "motion_blur": (motion_blur, (1, 1.5, 2, 2.25, 2.5), (1, 1.5, 2, 2.5, 3)),
    "zoom_blur": (zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25), (1.05, 1.10, 1.15, 1.20, 1.25)),
    "fog": (
        fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    ),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (pixelate, (0.95, 0.85, 0.8, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5)),
}

CORRUPTIONS = tuple(_TABLE)
"""The names that `corrupt` takes."""


def corrupt(
    images: Float[Tensor, "batch channels height width"],
    corruption: str,
    severity: int = 5,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Corrupt images as in ImageNet-C.

    Args:
        images: floating point, with values in [0, 1]: before any standardization.
        corruption: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5, at which test-time adaptation is usually judged.
        generator: of the random numbers, on the device of the images. None: torch's global one. The numbers
            differ between the images of a batch.

    Returns:
        New images in [0, 1] of the same shape and dtype. The constants are CIFAR-10-C's if the longer side
        has up to 48 pixels, and Tiny ImageNet-C's otherwise. They are meant for 28 to 64 pixels. Other sizes
        work, but a blur by the same number of pixels is milder in a larger image.

    Raises:
        TypeError: the images are not floating point.
        ValueError: another rank; values outside [0, 1] or NaN; an unknown corruption; another severity.

    Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261), section 3 and appendix B.

    >>> images = torch.rand(8, 3, 32, 32)
    >>> foggy = corrupt(images, "fog", 3, generator=torch.Generator().manual_seed(0))
    >>> foggy.shape, bool(foggy.min() >= 0), bool(foggy.max() <= 1)
    (torch.Size([8, 3, 32, 32]), True, True)
    """
    _check(images, corruption, severity)
    if images.numel() == 0:
        return images.clone()
    function, cifar, tiny_imagenet = _TABLE[corruption]
    constants = (cifar if max(images.shape[2:]) <= LARGEST_CIFAR_SIDE else tiny_imagenet)[severity - 1]
    arguments = constants if isinstance(constants, tuple) else (constants,)
    result: Tensor = function(upcast(images.detach()).contiguous(), *arguments, generator)
    return result.clamp(0, 1).to(images.dtype)


def _check(images: Tensor, corruption: str, severity: int) -> None:
    if corruption not in _TABLE:
        raise ValueError(f"unknown corruption {corruption!r}: choose one of {', '.join(CORRUPTIONS)}")
    if isinstance(severity, bool) or severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5; got {severity!r}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point in [0, 1]; got {images.dtype}: bytes become that by images / 255"
        )
    if images.dim() != 4:
        raise ValueError(
            f"images must be (N, C, H, W); got shape {tuple(images.shape)}: unsqueeze what is missing"
        )
    if images.numel() and not ((images >= 0) & (images <= 1)).all():
        raise ValueError(
            f"images must have values in [0, 1]; got {float(images.min()):.4g} to {float(images.max()):.4g}: "
            "corrupt them before you standardize them"
        )


# ---- parts of several corruptions ----


def _rand(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return the pixels `down` and `right` of each place, in whole pixels; borders are replicated.

    The shifts are `(N, H, W)` or `(N, 1, 1)`, the same in all channels.
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device)[:, None] + down.round().long()
    columns = torch.arange(width, device=x.device) + right.round().long()
    index = rows.clamp_(0, height - 1) * width + columns.clamp_(0, width - 1)
    return x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel with a kernel of odd sides; borders are replicated."""
    n, channels, height, width = x.shape
    vertical, horizontal = (side // 2 for side in kernel.shape)
    planes = x.reshape(n * channels, 1, height, width)
    padded = F.pad(planes, (horizontal, horizontal, vertical, vertical), mode="replicate")
    return F.conv2d(padded, kernel[None, None]).view_as(x)


def _gaussian_blur(x: Tensor, std: float, radius: int) -> Tensor:
    """Blur by a Gaussian that is cut off at `radius`."""
    kernel = (-0.5 * (torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device) / std) ** 2).exp()
    kernel = kernel / kernel.sum()
    return _filter(_filter(x, kernel[:, None]), kernel[None])


def _zoom_matrix(side: int, factor: float, like: Tensor) -> Tensor:
    """Return the matrix `(side, side)` of linear interpolation at positions contracted about the center."""
    center = (side - 1) / 2
    here = torch.arange(side, dtype=like.dtype, device=like.device)
    position = (here - center) / factor + center
    return (1 - (position[:, None] - here).abs()).clamp(min=0)


def _pixel_matrix(side: int, small: int, like: Tensor) -> Tensor:
    """Return the matrix `(side, side)` that averages `side` values over `small` equal cells."""
    edges = torch.linspace(0, side, max(1, small) + 1, dtype=like.dtype, device=like.device)
    here = torch.arange(side, dtype=like.dtype, device=like.device)
    start, end = edges[:-1, None].maximum(here), edges[1:, None].minimum(here + 1)
    shared = (end - start).clamp(min=0)
    return shared.T @ (shared / shared.sum(1, keepdim=True))
