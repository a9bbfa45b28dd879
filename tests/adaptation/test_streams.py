"""Orders and streams: permutations, runs of classes, and which sample comes from where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trueup.adaptation import continual_stream, dirichlet_order, iid_order, mixed_stream, sorted_order
from trueup.adaptation._streams import Order

ORDERS: list[Order] = [
    iid_order,
    sorted_order,
    dirichlet_order,
    partial(dirichlet_order, concentration=0.01, num_slots=3),
    partial(dirichlet_order, concentration=100.0),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(labels: Tensor) -> list[tuple[int, int]]:
    """Return class and length of each run."""
    return [(label, len(list(run))) for label, run in groupby(labels.tolist())]


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40, deadline=None)
@given(target=st.lists(st.integers(-2, 5), min_size=1, max_size=40), seed=st.integers(0, 2**40))
def test_an_order_is_a_permutation(order: Order, target: list[int], seed: int) -> None:
    labels = torch.tensor(target)
    permutation = order(labels, generator=seeded(seed))
    assert permutation.dtype == torch.int64
    assert sorted(permutation.tolist()) == list(range(len(target)))


@pytest.mark.parametrize("order", ORDERS)
def test_seeds(order: Order) -> None:
    target = torch.arange(10).repeat(20)
    one, same, other = (order(target, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(4)
    globally = order(target)
    torch.manual_seed(4)
    assert torch.equal(order(target), globally)
    assert torch.equal(order(target.int(), generator=seeded()), one)


def test_sorted_order_has_one_run_per_class() -> None:
    target = torch.randint(5, (200,), generator=seeded())
    order = sorted_order(target, generator=seeded(1))
    counts = target.bincount()
    assert runs(target[order]) == list(enumerate(counts.tolist()))
    # Within a class the order is random.
    members = order[: counts[0]]
    assert not torch.equal(members, members.sort().values)


def test_iid_order_mixes() -> None:
    target = torch.arange(2).repeat_interleave(500)
    assert len(runs(target[iid_order(target, generator=seeded())])) > 400


def test_dirichlet_order_has_one_run_per_class_and_slot() -> None:
    target = torch.randint(4, (400,), generator=seeded())
    for slots in (1, 2, 5):
        found = runs(target[dirichlet_order(target, 100.0, num_slots=slots, generator=seeded(1))])
        assert 3 * slots < len(found) <= 4 * slots  # the last run of a slot may go on in the next
    one_slot = runs(target[dirichlet_order(target, 100.0, num_slots=1, generator=seeded(1))])
    assert {label for label, _ in one_slot} == {0, 1, 2, 3}


def test_a_small_concentration_gives_long_runs() -> None:
    target = torch.arange(10).repeat(100)

    def mean_run(order: Tensor) -> float:
        return 1000 / len(runs(target[order]))

    lengths = [
        np.mean([mean_run(dirichlet_order(target, c, generator=seeded(seed))) for seed in range(5)])
        for c in (100.0, 1.0, 0.1, 0.001)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < 13  # about 10 per class and slot
    assert lengths[2] > 2 * lengths[0]
    assert lengths[3] > 80  # nearly one run per class, as if sorted


@pytest.mark.parametrize(("concentration", "slots"), [(0.1, 6), (2.0, 3)])
def test_dirichlet_order_against_lists(concentration: float, slots: int) -> None:
    """Give each class's samples to slots in the drawn shares, and write the slots down one after another."""
    target = torch.randint(3, (90,), generator=seeded()) * 5 - 2  # labels need not be 0, 1, 2
    order = dirichlet_order(target, concentration, num_slots=slots, generator=seeded(7))

    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=seeded(7))))
    shares = {label: rng.dirichlet([concentration] * slots) for label in (-2, 3, 8)}
    places = [rng.permutation(3) for _ in range(slots)]
    stream: list[list[int]] = []
    for slot in range(slots):
        classes = {}
        for k, (label, share) in enumerate(shares.items()):
            count = int((target == label).sum())
            start, end = round(count * share[:slot].sum()), round(count * share[: slot + 1].sum())
            classes[places[slot][k]] = [label] * (end - start)
        stream += [classes[place] for place in range(3)]
    assert target[order].tolist() == [label for run in stream for label in run]


DOMAINS = {
    "clean": (torch.arange(7.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 2, 0])),
    "fog": (torch.arange(10.0, 15.0)[:, None], torch.tensor([2, 1, 0, 2, 1])),
}
LABEL_OF = {float(x): int(y) for xs, ys in DOMAINS.values() for x, y in zip(xs, ys, strict=True)}


def test_continual_stream_keeps_the_order_and_splits_at_domains() -> None:
    batches = list(continual_stream(DOMAINS, 3))
    assert [x.flatten().tolist() for x, _, _ in batches] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [10, 11, 12],
        [13, 14],
    ]
    assert [names for _, _, names in batches] == [
        ("clean",) * 3, ("clean",) * 3, ("clean",), ("fog",) * 3, ("fog",) * 2
    ]  # fmt: skip
    assert all(LABEL_OF[float(a)] == int(b) for x, y, _ in batches for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_mixed_stream_yields_every_sample_once(order: Order, batch_size: int) -> None:
    batches = list(mixed_stream(DOMAINS, batch_size, order=order, generator=seeded()))
    sizes = [len(y) for _, y, _ in batches]
    assert sum(sizes) == 12
    assert all(size == batch_size for size in sizes[:-1])
    samples = [float(a) for x, _, _ in batches for a in x]
    assert sorted(samples) == sorted(LABEL_OF)
    labels = [int(b) for _, y, _ in batches for b in y]
    names = [name for _, _, batch in batches for name in batch]
    assert labels == [LABEL_OF[a] for a in samples]
    assert names == ["fog" if a >= 10 else "clean" for a in samples]


def test_the_order_of_a_mixed_stream() -> None:
    [(_x, y, names)] = mixed_stream(DOMAINS, 12, order=sorted_order, generator=seeded())
    assert y.tolist() == sorted(LABEL_OF.values())
    assert len({*names[:4]}) == 2  # both domains in one class
    [(iid, _, _)] = mixed_stream(DOMAINS, 12, generator=seeded())
    expected = torch.cat([xs for xs, _ in DOMAINS.values()])[torch.randperm(12, generator=seeded())]
    assert torch.equal(iid, expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: iid_order(torch.rand(3)), TypeError, "class indices; got torch.float32"),
        (lambda: iid_order(torch.ones(3) > 0), TypeError, "class indices; got torch.bool"),
        (lambda: sorted_order(torch.ones(3, 2).long()), ValueError, r"got shape \(3, 2\)"),
        (lambda: dirichlet_order(torch.ones(0).long()), ValueError, r"N >= 1; got shape \(0,\)"),
        (lambda: dirichlet_order(torch.arange(3), 0.0), ValueError, "must be positive; got 0.0"),
        (lambda: dirichlet_order(torch.arange(3), float("nan")), ValueError, "must be positive; got nan"),
        (lambda: dirichlet_order(torch.arange(3), num_slots=0), ValueError, "num_slots must be at least 1"),
        (lambda: continual_stream(DOMAINS, 0), ValueError, "batch_size must be at least 1; got 0"),
        (lambda: mixed_stream(DOMAINS, 2.0), TypeError, "batch_size must be an int; got 2.0"),  # type: ignore[arg-type]
        (lambda: continual_stream({}, 2), ValueError, "needs at least one domain; got none"),
        (
            lambda: continual_stream({"a": (torch.ones(2, 1), torch.arange(3))}, 2),
            ValueError,
            "the domain 'a' has 2 samples and 3 labels",
        ),
        (lambda: mixed_stream({"a": (torch.ones(0, 1), torch.arange(0))}, 2), ValueError, "has no samples"),
        (
            lambda: mixed_stream(DOMAINS | {"a": (torch.ones(2, 3), torch.arange(2))}, 2),
            ValueError,
            r"samples of one shape; got \[\(1,\), \(3,\)\]",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_mixed_domains_need_one_dtype() -> None:
    y = torch.arange(4)
    domains = {"a": (torch.rand(4, 1), y), "b": (torch.rand(4, 1, dtype=torch.float64), y)}
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        list(mixed_stream(domains, 2))
