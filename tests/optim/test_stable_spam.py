"""StableSPAM, SPAM and their parts: put together, on what the paper promises, and where it may go wrong."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from trueup.optim import SPAM, AdaClip, AdaGN, MomentumReset, StableSPAM
from trueup.optim.gradient_transforms import GradientTransform, correction


def gradients(steps: int, shape: tuple[int, ...] = (4, 3), spike: float = 1.0) -> Tensor:
    """Random, one in three times as large; every fifth step has a spiked entry."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(steps, *shape, generator=generator, dtype=torch.float64)
    g[::3] *= 3
    g[4::5, 0] *= spike
    return g


def run(optimizer: torch.optim.Optimizer, param: nn.Parameter, grads: Tensor) -> Tensor:
    path = []
    for g in grads:
        param.grad = g.to(param.dtype).clone()
        optimizer.step()
        path.append(param.detach().clone())
    return torch.stack(path)


def weight(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).view(4, 3))


def test_adam_with_the_three_transforms_is_stable_spam() -> None:
    grads = gradients(12, spike=50.0)
    whole, parts = weight(), weight()
    optimizer = torch.optim.AdamW([parts], 1e-2, weight_decay=0.1)
    AdaClip(optimizer, 0.6)
    AdaGN(optimizer, (0.7, 0.9))
    MomentumReset(optimizer, 5)
    want = run(
        StableSPAM([whole], 1e-2, weight_decay=0.1, gammas=(0.7, 0.9, 0.6), reset_interval=5), whole, grads
    )
    torch.testing.assert_close(run(optimizer, parts, grads), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("factor", [1e-2, 1e6, -1.0])
def test_a_constant_factor_of_the_gradient_changes_nothing(factor: float, foreach: bool) -> None:
    grads = gradients(20, spike=100.0)
    plain, scaled = weight(), weight()
    paths = [
        run(StableSPAM([p], 1e-2, reset_interval=7, foreach=foreach), p, g) - p0
        for p, g, p0 in ((plain, grads, weight()), (scaled, grads * factor, weight()))
    ]
    torch.testing.assert_close(paths[1] * math.copysign(1, factor), paths[0], rtol=1e-5, atol=1e-9)


def test_spiked_entries_go_on_moving() -> None:
    """The paper's illness: Adam freezes entries that have had spikes. How far do they get, beside none?"""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(30, 30, generator=generator) * 0.3

    def distance(build, spike: float) -> float:
        p = nn.Parameter(torch.zeros(30, 30))
        optimizer, noise = build(p), torch.Generator().manual_seed(4)
        for t in range(300):
            p.grad = base + torch.randn(30, 30, generator=noise)
            if t >= 75 and t % 25 == 0:
                p.grad[0, :5] *= spike
            optimizer.step()
        return float(p.detach()[0, :5].abs().mean())

    share = {
        name: distance(build, 100.0) / distance(build, 1.0)
        for name, build in {
            "adam": lambda p: torch.optim.Adam([p], 1.0),
            "stable": lambda p: StableSPAM([p], 1.0, reset_interval=0),
        }.items()
    }
    assert share["adam"] < 0.7
    assert share["stable"] > share["adam"] + 0.15


def test_official_resets_all_but_switch_clipping_off() -> None:
    """Why the default is the paper's: the shared counter lifts the limit after a reset."""
    grads = gradients(40) / 3
    grads[35, 0] *= 100
    steps = {}
    for mode in ("paper", "official"):
        p = weight()
        path = run(StableSPAM([p], 1e-2, reset_interval=30, reset_mode=mode), p, grads)
        steps[mode] = float((path[35] - path[34])[0].abs().mean() / (path[35] - path[34])[1:].abs().mean())
    assert steps["paper"] < 0.7 * steps["official"]


def test_averages_stay_in_float32_for_bfloat16_weights() -> None:
    p = weight(torch.bfloat16)
    optimizer = StableSPAM([p], 1e-3)
    run(optimizer, p, gradients(3))
    own = optimizer.state[p]
    assert {name: own[name].dtype for name in StableSPAM.scalars} == dict.fromkeys(
        StableSPAM.scalars, torch.float32
    )
    assert own["exp_avg"].dtype == torch.bfloat16


def test_schedule_reaches_its_end_and_stays() -> None:
    optimizer = StableSPAM([weight()], betas=(0.9, 0.999), total_steps=10, eta_min=0.5)
    (group,) = optimizer.param_groups
    for route in (float, torch.tensor):
        betas = [float(optimizer._now(group, route(t), route(t))[0]) for t in (1.0, 11.0, 12.0, 30.0)]
        assert betas == pytest.approx([0.9 * (0.5 + 0.25 * (1 + math.cos(math.pi / 11))), 0.45, 0.45, 0.45])


def test_gradients_are_left_as_they_were() -> None:
    for optimizer_class in (StableSPAM, SPAM):
        p, g = weight(), gradients(1)[0]
        p.grad = g.clone()
        optimizer_class([p]).step()
        assert torch.equal(p.grad, g)


def test_corrections_are_exact_for_gammas_near_one() -> None:
    t = torch.tensor(3.0)
    for gamma in (0.99999, 0.7, 0.0):
        assert correction(gamma, t).item() == pytest.approx(1 - gamma**3, rel=1e-6)


# ---- the transforms on their own ----

TRANSFORMS = [lambda o: AdaClip(o, 0.6), AdaGN, lambda o: MomentumReset(o, 4)]


@pytest.mark.parametrize("build", TRANSFORMS)
def test_a_transform_resumes_where_it_was_saved(build) -> None:
    grads = gradients(10, spike=50.0)
    straight, resumed = weight(), weight()
    optimizer = torch.optim.Adam([straight], 1e-2)
    build(optimizer)
    want = run(optimizer, straight, grads)

    first = torch.optim.Adam([resumed], 1e-2)
    transform = build(first)
    run(first, resumed, grads[:6])
    file = io.BytesIO()
    torch.save([first.state_dict(), transform.state_dict()], file)
    file.seek(0)
    second = torch.optim.Adam([resumed], 1e-2)
    again = build(second)
    for part, state in zip((second, again), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert torch.equal(run(second, resumed, grads[6:]), want[6:])


@pytest.mark.parametrize("build", TRANSFORMS)
def test_a_removed_transform_does_nothing(build) -> None:
    plain, freed = weight(), weight()
    optimizer = torch.optim.Adam([freed], 1e-2)
    build(optimizer).remove()
    grads = gradients(8, spike=50.0)
    assert torch.equal(run(optimizer, freed, grads), run(torch.optim.Adam([plain], 1e-2), plain, grads))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("build", TRANSFORMS[:2])
def test_a_gradient_that_is_not_finite_passes_and_is_forgotten(build, value: float) -> None:
    p = weight()
    optimizer = torch.optim.SGD([p], 0.0)
    transform: GradientTransform = build(optimizer)
    run(optimizer, p, gradients(3))
    before = {name: number.clone() for name, number in transform.state[p].items()}
    bad = gradients(1)[0]
    bad[1, 1] = value
    p.grad = bad.clone()
    optimizer.step()
    assert torch.equal(p.grad.nan_to_num(7.0, 8.0), bad.nan_to_num(7.0, 8.0))
    assert transform.state[p] == before


def test_momentum_of_any_optimizer_is_reset() -> None:
    p = weight()
    optimizer = torch.optim.SGD([p], 0.1, momentum=0.9)
    MomentumReset(optimizer, 3)
    path = run(optimizer, p, torch.ones(3, 4, 3))
    moves = (path[1:] - path[:-1]).mean((1, 2)) / -0.1
    torch.testing.assert_close(moves, torch.tensor([1.9, 1.0], dtype=torch.float64))


@pytest.mark.bad_input
def test_transforms_of_what_they_cannot_treat() -> None:
    optimizer = torch.optim.SGD([weight()], 0.1)
    with pytest.raises(TypeError, match="attaches itself to an optimizer"):
        AdaClip([weight()])
    with pytest.raises(ValueError, match="gamma must be"):
        AdaClip(optimizer, 1.0)
    with pytest.raises(ValueError, match=r"gammas\[1\] must be"):
        AdaGN(optimizer, (0.5, 1.0))
    with pytest.raises(ValueError, match="eps must be"):
        AdaGN(optimizer, eps=-1.0)
    with pytest.raises(ValueError, match="interval must be"):
        MomentumReset(optimizer, 0)
    with pytest.raises(ValueError, match="load_state_dict needs step, max"):
        AdaClip(optimizer).load_state_dict(AdaGN(optimizer).state_dict() | {0: {"step": torch.zeros(())}})
    table = nn.Embedding(4, 2, sparse=True)
    sparse = torch.optim.SGD(table.parameters(), 0.1)
    AdaClip(sparse)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense real gradients"):
        sparse.step()
