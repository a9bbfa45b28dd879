"""Test what AdamP and SGDP promise beyond the suite for all optimizers."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueup.optim import SGDP, AdamP


def tangent_gradient(w: Tensor, seed: int) -> Tensor:
    g = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    w = w.detach()
    return g - w * (w * g).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("build", "hyper"),
    [
        (SGDP, {"lr": 0.5, "momentum": 0.9}),
        (SGDP, {"lr": 0.5, "momentum": 0.9, "nesterov": True}),
        (AdamP, {"lr": 0.1}),
        (AdamP, {"lr": 0.1, "nesterov": True}),
    ],
)
def test_projected_step_grows_by_pythagoras(build: Any, hyper: dict[str, Any], foreach: bool) -> None:
    """||w'||^2 - ||w||^2 = ||w' - w||^2 of every row: the step has no part along w, momentum or not."""
    w = nn.Parameter(torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer = build([w], **hyper, foreach=foreach, eps=1e-14)
    for seed in range(20):
        before = w.detach().clone()
        w.grad = tangent_gradient(w, seed)
        optimizer.step()
        grown = w.square().sum(1) - before.square().sum(1)
        torch.testing.assert_close(grown, (w - before).square().sum(1), rtol=1e-9, atol=1e-12)


def test_momentum_alone_lengthens_the_weight_much_faster() -> None:
    """The effect itself, and its control: without projection the identity above fails."""
    growth = {}
    for delta in (0.1, 0.0):
        w = nn.Parameter(torch.ones(1, 50, dtype=torch.float64))
        target = torch.randn(1, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        optimizer = SGDP([w], 0.5, momentum=0.9, delta=delta)
        for _ in range(300):
            optimizer.zero_grad()
            (-nn.functional.cosine_similarity(w, target)).sum().backward()
            optimizer.step()
        growth[delta] = w.square().sum().item() - 50
    assert 0 < growth[0.1] < 0.2 * growth[0.0]


def test_without_projection_adamp_is_adamw() -> None:
    shapes = [(4, 3), (5,)]
    pair = [[nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in shapes] for _ in range(2)]
    ours = AdamP(pair[0], 1e-2, (0.8, 0.9), 1e-6, 0.1, delta=0)
    theirs = torch.optim.AdamW(pair[1], 1e-2, (0.8, 0.9), 1e-6, 0.1)
    for step in range(5):
        for mine, peer in zip(*pair):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step)).double()
            peer.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, peer in zip(*pair):
        torch.testing.assert_close(mine, peer, rtol=1e-12, atol=0)


def test_the_variants_differ_from_the_second_step() -> None:
    """Without nesterov the official code projects the momentum buffer in place; the paper does not."""
    weights = [nn.Parameter(torch.tensor([[3.0, 4.0, 1.0]], dtype=torch.float64)) for _ in range(2)]
    official, paper = (
        SGDP([w], 0.1, 0.9, variant=variant) for w, variant in zip(weights, ("official", "paper"))
    )
    for step in range(3):
        # At the second step both project a buffer that holds the first gradient, which is along the weight.
        for w, optimizer in zip(weights, (official, paper)):
            w.grad = w.detach().clone() if step == 0 else tangent_gradient(w, step)
            optimizer.step()
        assert torch.equal(*weights) == (step < 2)
    buffers = [optimizer.state[w]["momentum"] for w, optimizer in zip(weights, (official, paper))]
    assert not torch.equal(*buffers)


@pytest.mark.parametrize("foreach", [False, True])
def test_official_state_dicts_load(foreach: bool) -> None:
    """The official classes count steps in Python ints and know no foreach, maximize or variant."""
    w = nn.Parameter(torch.ones(2, 3))
    m, v = torch.full((2, 3), 0.5), torch.full((2, 3), 0.25)
    group = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1, "nesterov": False}
    adamp = AdamP([w], foreach=foreach)
    adamp.load_state_dict(
        {
            "state": {0: {"step": 7, "exp_avg": m, "exp_avg_sq": v}},
            "param_groups": [{**group, "betas": (0.9, 0.999), "params": [0]}],
        }
    )
    state = adamp.state[w]
    assert torch.equal(state["step"], torch.tensor(7.0))
    assert adamp.param_groups[0]["foreach"] is None
    assert adamp.param_groups[0]["maximize"] is False
    w.grad = torch.ones(2, 3)
    adamp.step()
    moment, square = 0.9 * 0.5 + 0.1, 0.999 * 0.25 + 0.001
    update = moment / ((square / (1 - 0.999**8)) ** 0.5 + 1e-8)
    torch.testing.assert_close(w.detach(), torch.full((2, 3), 1 - 0.1 / (1 - 0.9**8) * update))

    sgdp = SGDP([w], 0.1, foreach=foreach)
    sgdp.load_state_dict(
        {
            "state": {0: {"momentum": torch.full((2, 3), 0.5)}},
            "param_groups": [{**group, "momentum": 0.9, "dampening": 0.0, "params": [0]}],
        }
    )
    assert sgdp.param_groups[0]["variant"] == "official"
    sgdp.step()
    torch.testing.assert_close(sgdp.state[w]["momentum"], torch.full((2, 3), 0.9 * 0.5 + 1))


def test_loaded_step_count_is_as_precise_as_the_weight() -> None:
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        w = nn.Parameter(torch.ones(2, 3, dtype=dtype))
        adamp = AdamP([w])
        saved = adamp.state_dict()
        saved["state"] = {0: {"step": 7, "exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.zeros(2, 3)}}
        adamp.load_state_dict(saved)
        assert adamp.state[w]["step"].dtype == expected
        assert adamp.state[w]["exp_avg"].dtype == dtype


def test_incomplete_state_is_refused() -> None:
    w = nn.Parameter(torch.ones(2, 3))
    saved = AdamP([w]).state_dict()
    saved["state"] = {0: {"step": 1, "exp_avg": torch.zeros(2, 3)}}
    with pytest.raises(
        ValueError, match="step, exp_avg, exp_avg_sq for every parameter; got step, exp_avg\\."
    ):
        AdamP([w]).load_state_dict(saved)


def test_sgdp_takes_what_the_official_class_takes() -> None:
    # torch.optim.SGD refuses nesterov without momentum or with dampening; the official SGDP computes it.
    w = nn.Parameter(torch.ones(1))
    w.grad = torch.ones(1)
    SGDP([w], 0.1, nesterov=True).step()
    assert w.item() == pytest.approx(0.9)
    SGDP([w], 0.1, 0.5, 0.5, nesterov=True).step()
    assert w.item() == pytest.approx(0.9 - 0.1 * 1.25)


def test_defaults_are_those_of_the_official_code_but_for_the_variant() -> None:
    shared = {"eps": 1e-8, "weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1, "nesterov": False}
    own = {
        AdamP: {"lr": 1e-3, "betas": (0.9, 0.999)},
        SGDP: {"lr": inspect.Parameter.empty, "momentum": 0.0, "dampening": 0.0, "variant": "paper"},
    }
    for optimizer, defaults in own.items():
        found = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
        assert {name: found[name] for name in defaults | shared} == defaults | shared


@pytest.mark.parametrize("build", [AdamP, SGDP])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_propagates_without_a_warning(build: Any, value: float) -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    w.grad = torch.tensor([[-4.0, 3.0], [value, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build([w], 0.1).step()
    assert w[0].isfinite().all()
    assert w.isfinite().all() == (value == 3e38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [False, True])
def test_official_sgdp_projects_its_buffer_in_any_precision(foreach: bool, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=dtype))
    optimizer = SGDP([weight], 0.0, momentum=0.9, foreach=foreach, variant="official")
    weight.grad = torch.tensor([[-4.0, 3.0]], dtype=dtype)
    optimizer.step()
    optimizer.state[weight]["momentum"] += torch.tensor([[3.0, 4.0]], dtype=dtype)
    optimizer.step()
    # 0.9 x (-1, 7) + (-4, 3), without its part along the weight
    expected = torch.tensor([[-7.6, 5.7]], dtype=dtype)
    torch.testing.assert_close(optimizer.state[weight]["momentum"], expected)
