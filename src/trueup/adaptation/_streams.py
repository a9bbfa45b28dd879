"""Orders of a test set, and streams of batches over several domains.

Problem: how well a model adapts depends on the order in which test data arrive. A camera sees one class for a
while (labels are correlated in time), and the domain changes without notice. Idea: an order is a permutation
of the test set, drawn from its labels; a stream joins domains one after another, or mixes them.

The Dirichlet order splits time into slots. For each class k, shares of the slots are drawn,

    shares_k ~ Dirichlet(concentration, ..., concentration)

and the class's samples go to the slots in these shares. A slot holds one run per class, in random order. The
smaller the concentration, the fewer slots a class is in, and the longer its runs.

Gong et al.: NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation, NeurIPS 2022, arXiv
2208.05117, and Tomar et al.: Un-Mixing Test-Time Normalization Statistics, ICLR 2024, arXiv 2401.08328, which
uses concentrations of 0.1 for 10 classes and 0.01 for 100 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from trueup.nn._validation import check_int

__all__ = [
    "Domains",
    "Order",
    "continual_stream",
    "dirichlet_order",
    "iid_order",
    "mixed_stream",
    "sorted_order",
]

Domains = Mapping[str, tuple[Tensor, Tensor]]
Batch = tuple[Tensor, Tensor, tuple[str, ...]]
Order = Callable[..., Tensor]  # from labels and a keyword argument `generator` to a permutation


def iid_order(
    target: Int[Tensor, " samples"], *, generator: torch.Generator | None = None
) -> Int[Tensor, " samples"]:
    """Return a random permutation: labels are independent of time.

    Args:
        target: class labels; only their number counts.
        generator: on the CPU. None: torch's global one.

    Returns:
        Indices, on the device of the labels.

    Raises:
        ValueError, TypeError: the labels are not one vector of integers with at least one entry.

    >>> iid_order(torch.tensor([0, 0, 1, 1]), generator=torch.Generator().manual_seed(0))
    tensor([0, 1, 3, 2])
    """
    _check_target(target)
    return torch.randperm(len(target), generator=generator).to(target.device)


def sorted_order(
    target: Int[Tensor, " samples"], *, generator: torch.Generator | None = None
) -> Int[Tensor, " samples"]:
    """Return a permutation that sorts by class, in random order within each: the hardest stream.

    Arguments, result and errors as `iid_order`.

    >>> target = torch.tensor([2, 0, 1, 0])
    >>> target[sorted_order(target)]
    tensor([0, 0, 1, 2])
    """
    order = iid_order(target, generator=generator)
    return order[target[order].argsort(stable=True)]


def dirichlet_order(
    target: Int[Tensor, " samples"],
    concentration: float = 0.1,
    *,
    num_slots: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " samples"]:
    """Return a permutation in which labels are correlated in time, by a Dirichlet distribution over slots.

    Args:
        target: class labels.
        concentration: > 0; the smaller, the longer the runs of one class.
        num_slots: parts of the stream, in each of which a class is one run. None: as many as classes.
        generator: on the CPU. None: torch's global one.

    Returns:
        Indices, on the device of the labels. Even with a large concentration a slot is a sequence of runs,
        one per class: for independent labels use `iid_order`.

    Raises:
        ValueError, TypeError: as `iid_order`; a concentration that is not positive; fewer than one slot.

    Source: the head of this module; the protocol of NOTE and UnMix-TNS.

    >>> target = torch.arange(3).repeat(4)
    >>> target[dirichlet_order(target, 0.01, generator=torch.Generator().manual_seed(0))]
    tensor([2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1])
    """
    _check_target(target)
    if not concentration > 0:
        raise ValueError(f"concentration must be positive; got {concentration}: use 0.1, or sorted_order")
    labels, label = np.unique(target.cpu().numpy(), return_inverse=True)
    classes = len(labels)
    slots = classes if num_slots is None else num_slots
    check_int("num_slots", slots, 1)

    # torch cannot draw from a Dirichlet distribution with a generator.
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    shares = rng.dirichlet(np.full(slots, concentration), classes)
    place = rng.permuted(np.tile(np.arange(classes), (slots, 1)), axis=1)  # of each class within a slot
    slot = np.empty_like(label)
    for k in range(classes):
        members = rng.permutation(np.flatnonzero(label == k))
        ends = np.rint(shares[k].cumsum() * len(members))[:-1]
        slot[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    shuffled = rng.permutation(len(label))  # within a run the order is random
    runs = np.lexsort((place[slot, label][shuffled], slot[shuffled]))
    return torch.from_numpy(shuffled[runs]).to(target.device)


def continual_stream(domains: Domains, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of one domain after another, each in the order in which it is given.

    Args:
        domains: name -> (x, y), samples and their labels. For an order of the labels, index both with it:
            `order = dirichlet_order(y); x[order], y[order]`.
        batch_size: samples per batch. A domain's last batch may be smaller; no batch spans two domains.

    Yields:
        (x, y, names), with the name of each sample's domain.

    Raises:
        ValueError: there is no domain, or an empty one; x and y differ in length; a batch size below 1.

    >>> domains = {"clean": (torch.zeros(3, 1), torch.arange(3)), "fog": (torch.ones(2, 1), torch.arange(2))}
    >>> [(y.tolist(), names) for x, y, names in continual_stream(domains, 2)]
    [([0, 1], ('clean', 'clean')), ([2], ('clean',)), ([0, 1], ('fog', 'fog'))]
    """
    _check_domains(domains, batch_size)
    return _continual(domains, batch_size)


def _continual(domains: Domains, batch_size: int) -> Iterator[Batch]:
    for name, (x, y) in domains.items():
        for samples, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            yield samples, labels, (name,) * len(labels)


def mixed_stream(
    domains: Domains,
    batch_size: int,
    *,
    order: Order = iid_order,
    generator: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield batches in which the domains are mixed.

    Args:
        domains: name -> (x, y), samples and their labels. All x have the same shape per sample.
        batch_size: samples per batch; the last may be smaller.
        order: of all labels together; `dirichlet_order` gives mixed domains with correlated labels. Bind its
            options by `functools.partial(dirichlet_order, concentration=0.01)`.
        generator: passed on to `order`.

    Yields:
        (x, y, names), with the name of each sample's domain.

    Raises:
        TypeError: samples of different dtypes.
        ValueError: as `continual_stream`; samples of different shapes.

    >>> domains = {"clean": (torch.zeros(3, 1), torch.arange(3)), "fog": (torch.ones(3, 1), torch.arange(3))}
    >>> stream = mixed_stream(domains, 4, order=sorted_order)
    >>> [y.tolist() for x, y, names in stream]
    [[0, 0, 1, 1], [2, 2]]
    """
    _check_domains(domains, batch_size)
    shapes = {x.shape[1:] for x, _ in domains.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"mixed domains need samples of one shape; got {sorted(map(tuple, shapes))}: resize them, or use "
            "continual_stream"
        )
    dtypes = sorted({str(x.dtype) for x, _ in domains.values()})
    if len(dtypes) > 1:
        raise TypeError(f"mixed domains need samples of one dtype; got {', '.join(dtypes)}: convert them")
    target = torch.cat([y for _, y in domains.values()])
    return _mixed(domains, target, order(target, generator=generator), batch_size)


def _mixed(domains: Domains, target: Tensor, order: Tensor, batch_size: int) -> Iterator[Batch]:
    names = list(domains)
    sizes = torch.tensor([len(y) for _, y in domains.values()])
    domain = torch.arange(len(names)).repeat_interleave(sizes).to(order.device)
    row = torch.cat([torch.arange(int(size)) for size in sizes]).to(order.device)
    first = next(iter(domains.values()))[0]
    for batch in order.split(batch_size):
        x = first.new_empty((len(batch), *first.shape[1:]))
        for index, (samples, _) in enumerate(domains.values()):
            here = domain[batch] == index
            x[here] = samples[row[batch][here]]
        yield x, target[batch], tuple(names[i] for i in domain[batch].tolist())


def _check_target(target: Tensor) -> None:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must be class indices; got {target.dtype}: convert with .long()")
    if target.dim() != 1 or not len(target):
        raise ValueError(
            f"target must be one label per sample, (N,) with N >= 1; got shape {tuple(target.shape)}"
        )


def _check_domains(domains: Domains, batch_size: int) -> None:
    check_int("batch_size", batch_size, 1)
    if not domains:
        raise ValueError("a stream needs at least one domain; got none: pass {name: (x, y)}")
    for name, (x, y) in domains.items():
        if not len(y):
            raise ValueError(f"the domain {name!r} has no samples: leave it out")
        if len(x) != len(y):
            raise ValueError(
                f"the domain {name!r} has {len(x)} samples and {len(y)} labels: pass one label per sample"
            )
