"""Distributions whose classes overlap in a part of their support, with their Bayes-optimal probabilities.

The problem: calibration is an expected distance between predicted and true probabilities, and real data
hide the true ones. The idea: draw labels from a known posterior pi(y | x), which is 0 or 1 in one part of the
space and ambiguous in another. There an interpolating network is over-confident, and a single temperature can
repair it only by harming the clean part. With Gaussian components m and joint probabilities p(y, m),

    pi(y | x) = sum_m p(y, m) N(x; mu_m, s^2 I) / sum_{y', m} p(y', m) N(x; mu_m, s^2 I).

Paper: M. Chidambaram, R. Ge, On the Limitations of Temperature Scaling for Distributions with Overlaps, 2024,
arXiv 2306.00740. `OverlappingClusters` is a sampler in the manner of its theory: the paper asks for pairs of
classes that share a part of their support; ours are Gaussian. `OverlappingGaussians` and
`paired_label_noise` are those of the official code (2014mchidamb/temp-scaling-limitations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trueup.calibration._validation import check_target
from trueup.nn._validation import check_int, check_unit_interval

__all__ = ["OverlappingClusters", "OverlappingGaussians", "paired_label_noise"]

# ---- the equation ----


def _posterior(
    x: Float[Tensor, "n dim"],
    centers: Float[Tensor, "components dim"],
    joint: Float[Tensor, "components classes"],
    noise: float,
) -> Float[Tensor, "n classes"]:
    """Return pi(y | x) for components N(centers[m], noise^2 I) and probabilities `joint[m, y]`."""
    log_density = -(x[:, None] - centers).square().sum(-1) / (2 * noise**2)  # up to a constant
    return (log_density[:, :, None] + joint.log()).logsumexp(1).softmax(1)


# ---- the samplers ----


class OverlappingClusters:
    """Sample from pairs of classes: each class has a Gaussian cluster of its own, each pair a shared one.

    With probability `overlap` a point comes from the cluster that its class shares with its partner (classes
    0 and 1, 2 and 3, ...), where both labels are equally likely; else from its own. Classes are equally
    frequent. The best attainable cross-entropy is about `overlap` log 2 where clusters are far apart.

    Args:
        num_classes: even, at least 2.
        dim: dimension of the points.
        overlap: probability of a shared cluster, in [0, 1].
        center_norm: length of the centres, whose directions are uniform on the sphere.
        noise: standard deviation of every coordinate about its centre, > 0.
        generator: source of the directions; by default torch's global one.

    Attributes:
        centers: `(num_classes + num_classes // 2, dim)`, those of the classes before those of the pairs.

    Raises:
        TypeError: a number is of another type.
        ValueError: a number is out of its range.

    >>> generator = torch.Generator().manual_seed(0)
    >>> clusters = OverlappingClusters(4, 30, 0.3, generator=generator)
    >>> x, y = clusters.sample(100, generator=generator)
    >>> x.shape, clusters.posterior(x).shape
    (torch.Size([100, 30]), torch.Size([100, 4]))
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        overlap: float,
        *,
        center_norm: float = 6.0,
        noise: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_int("num_classes", num_classes, 2)
        if num_classes % 2:
            raise ValueError(f"num_classes must be even, since classes come in pairs; got {num_classes}")
        check_int("dim", dim, 1)
        check_unit_interval("overlap", overlap)
        _check_positive("center_norm", center_norm)
        _check_positive("noise", noise)
        self.num_classes = num_classes
        self.dim = dim
        self.overlap = overlap
        self.noise = noise
        directions = torch.randn(
            num_classes + num_classes // 2, dim, generator=generator, dtype=torch.float64
        )
        self.centers = center_norm * directions / directions.norm(dim=1, keepdim=True)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
        """Draw `n` independent points, in torch's default dtype, and their labels."""
        check_int("n", n, 1)
        y = torch.randint(self.num_classes, (n,), generator=generator)
        shared = torch.rand(n, generator=generator) < self.overlap
        component = torch.where(shared, self.num_classes + y // 2, y)
        x = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return (self.centers[component] + self.noise * x).to(torch.get_default_dtype()), y

    def posterior(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        """Return the Bayes-optimal probabilities of the classes, in float64.

        Raises:
            ValueError: points of another dimension.
        """
        _check_points(x, (self.dim,))
        own = torch.eye(self.num_classes, dtype=torch.float64)
        pairs = own[0::2] + own[1::2]
        joint = torch.cat([(1 - self.overlap) * own, self.overlap * pairs]) / self.num_classes
        return _posterior(x.double(), self.centers.to(x.device), joint.to(x.device), self.noise)


class OverlappingGaussians:
    """Sample from two unit Gaussians about 0 and `(separation, ..., separation)`, shaped like small images.

    Args:
        separation: shift of every coordinate between the classes, > 0; the official code has 0.25, 0.1,
            0.05 and 0.01.
        shape: of a point.

    Raises:
        ValueError: separation not > 0, or an empty shape.

    Source: the Gaussian benchmark of the official code, with n = 5000.

    >>> gaussians = OverlappingGaussians(0.25)
    >>> x, y = gaussians.sample(8, generator=torch.Generator().manual_seed(0))
    >>> x.shape, gaussians.posterior(x).shape
    (torch.Size([8, 3, 10, 10]), torch.Size([8, 2]))
    """

    num_classes = 2

    def __init__(self, separation: float = 0.25, *, shape: Sequence[int] = (3, 10, 10)) -> None:
        _check_positive("separation", separation)
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must hold at least one size, each >= 1; got {tuple(shape)}")
        self.separation = separation
        self.shape = tuple(shape)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """Draw `n` independent points, in torch's default dtype, and their labels."""
        check_int("n", n, 1)
        y = torch.randint(2, (n,), generator=generator)
        x = torch.randn(n, *self.shape, generator=generator)
        return x + self.separation * y.view(-1, *[1] * len(self.shape)), y

    def posterior(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 2"]:
        """Return the Bayes-optimal probabilities of the two classes, in float64.

        Raises:
            ValueError: points of another shape.
        """
        _check_points(x, self.shape)
        points = x.double().flatten(1)
        centers = points.new_tensor([[0.0], [self.separation]]).expand(2, points.shape[1])
        return _posterior(points, centers, torch.eye(2).to(points) / 2, 1.0)


def paired_label_noise(
    target: Int[Tensor, " n"], num_classes: int, rate: float, *, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " n"], Int[Tensor, " classes"]]:
    """Replace labels at random by those of a fixed partner of their class, so that classes overlap in pairs.

    Each class gets a partner, uniform among the other classes. Two classes may have the same partner.

    Args:
        target: labels in `[0, num_classes)`.
        num_classes: at least 2.
        rate: probability with which a label is replaced, in [0, 1].
        generator: source of the partners and of the choice, on the CPU; by default torch's global one.

    Returns:
        the noisy labels, and the partner of every class. If `target` is without noise, the true
        probabilities are `1 - rate` for it and `rate` for its partner.

    Raises:
        TypeError: labels are not integers.
        ValueError: no labels, labels or rate out of range, or fewer than 2 classes.

    Source: the label noise of the official code, which applies it to the training rows alone.

    >>> noisy, partner = paired_label_noise(torch.tensor([0, 1, 2]), 3, 1.0)
    >>> bool((noisy != torch.tensor([0, 1, 2])).all()), bool((noisy == partner).all())
    (True, True)
    """
    check_int("num_classes", num_classes, 2)
    check_unit_interval("rate", rate)
    if len(target) == 0:
        raise ValueError("target is empty: pass at least one label")
    labels = check_target(target, (len(target), num_classes), num_classes)
    shift = torch.randint(1, num_classes, (num_classes,), generator=generator)
    partner = ((torch.arange(num_classes) + shift) % num_classes).to(labels.device)
    replaced = (torch.rand(len(labels), generator=generator) < rate).to(labels.device)
    return torch.where(replaced, partner[labels], labels), partner


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number > 0; got {value}")


def _check_points(x: Tensor, shape: tuple[int, ...]) -> None:
    if not x.is_floating_point():
        raise TypeError(f"points must be floating point; got {x.dtype}: convert with .float()")
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"points must be (n, {', '.join(map(str, shape))}); got shape {tuple(x.shape)}")
