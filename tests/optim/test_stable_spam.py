"""Test StableSPAM, SPAM and their parts: together, what the paper promises, and what may go wrong."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from conformance.optimizers import stable_spam
from trueup.optim import SGDP, SPAM, AdaClip, AdaGN, AdamP, MomentumReset, NormalizedGD, StableSPAM
from trueup.optim._bias_correction import bias_correction
from trueup.optim._gradient_norms import norm_of
from trueup.optim._gradient_transform import GradientTransform
from trueup.optim._stable_spam import schedule


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


def test_defaults_are_those_of_the_official_code_but_for_the_reset() -> None:
    shared = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}
    own = {
        StableSPAM: {"eps": 1e-8, "gammas": (0.7, 0.9, 0.999), "reset_interval": 1000, "total_steps": None}
        | {"eta_min": 0.5, "amsgrad": False, "variant": "paper"},
        SPAM: {"eps": 1e-6, "spike_threshold": 5000, "warmup_steps": 150, "reset_interval": 500}
        | {"grad_accu_steps": 20},
    }
    for optimizer, defaults in own.items():
        found = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
        assert {name: found[name] for name in defaults | shared} == defaults | shared


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
    """Return the progress of entries that have had spikes, which Adam freezes, beside that without spikes."""
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
    for variant in ("paper", "official"):
        p = weight()
        path = run(StableSPAM([p], 1e-2, reset_interval=30, variant=variant), p, grads)
        steps[variant] = float((path[35] - path[34])[0].abs().mean() / (path[35] - path[34])[1:].abs().mean())
    assert steps["paper"] < 0.7 * steps["official"]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_half_types_train_as_float32_does(scale: float, foreach: bool) -> None:
    """float16 can hold neither the squares of scaled gradients nor the factors that scale them."""
    for dtype in (torch.float16, torch.bfloat16):
        exact, half = (nn.Parameter(torch.zeros(64, 64, dtype=d)) for d in (torch.float32, dtype))
        grads = (gradients(8, (64, 64)) * scale).to(dtype).float()
        paths = [run(StableSPAM([p], 1e-2, foreach=foreach), p, grads).float() for p in (exact, half)]
        torch.testing.assert_close(paths[1], paths[0], rtol=0.05, atol=1e-3)


# ---- in float32 ----


def test_norms_of_large_tensors_keep_the_digits_of_float32() -> None:
    """Torch's own norm does not do this on a CPU, so two float32 implementations may disagree."""
    g = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    exact = float(g.double().norm())
    assert float(norm_of(g)) == pytest.approx(exact, rel=5e-6)
    for layout in (g.t(), g.view(32, 64, 32, 32).to(memory_format=torch.channels_last), g[:, :1000]):
        assert float(norm_of(layout)) == pytest.approx(float(layout.double().norm()), rel=5e-6)
    for foreach in (False, True):
        p = nn.Parameter(torch.zeros_like(g))
        p.grad = g
        optimizer = StableSPAM([p], foreach=foreach)
        optimizer.step()
        assert float(optimizer.state[p]["grad_norm"]) == pytest.approx(0.3 * exact, rel=5e-6)


@pytest.mark.parametrize("foreach", [False, True])
def test_implementations_part_where_an_entry_is_at_the_limit(foreach: bool) -> None:
    """AdaClip jumps there, from the limit L to L^2 / largest; beside it nothing depends on rounding."""
    moved = {}
    for nudge in (-1e-6, 1e-6):
        p = nn.Parameter(torch.zeros(5000))
        optimizer = StableSPAM([p], 1e-3, gammas=(0.7, 0.9, 0.5), foreach=foreach)
        # the second limit is (0.25 x 1 + 0.5 x 4) / 0.75
        for largest, entry in ((1.0, 0.3), (4.0, 3.0 * (1 + nudge))):
            g = torch.linspace(-0.5, 0.5, 5000)
            g[0], g[1] = largest, entry
            p.grad = g
            optimizer.step()
        moved[nudge] = p.detach()
    apart = (moved[1e-6] - moved[-1e-6]).abs()
    assert apart[1] > 1.5e-5
    assert apart[2:].max() < 3e-6  # by the norm, which that entry enters
    assert apart[2:].median() < 2e-7


@pytest.mark.slow
def test_a_transformers_embedding_follows_float64() -> None:
    """12.6 million entries, with a spike: in float64 all agree to rounding, in float32 to 1e-5 of a step."""
    hyper = {"lr": 1e-3, "reset_interval": 2}
    params = {
        (dtype, foreach): nn.Parameter(torch.zeros(16384, 768, dtype=dtype))
        for dtype in (torch.float32, torch.float64)
        for foreach in (False, True)
    }
    optimizers = {key: StableSPAM([p], **hyper, foreach=key[1]) for key, p in params.items()}
    full = optimizers[torch.float64, True].defaults
    expected, state = torch.zeros(16384, 768, dtype=torch.float64), {}
    for t in range(2):
        g = torch.randn(16384, 768, generator=torch.Generator().manual_seed(t))
        g[0, :5] *= 100 if t == 1 else 1
        expected = stable_spam(expected, g.double(), state, **full)
        for (dtype, foreach), p in params.items():
            p.grad = g.to(dtype)
            optimizers[dtype, foreach].step()
            p.grad = None
            bound = 1e-8 if dtype == torch.float32 else 1e-15
            assert (p.detach() - expected).abs().max() < bound


def test_schedule_reaches_its_end_and_stays() -> None:
    optimizer = StableSPAM([weight()], betas=(0.9, 0.999), total_steps=10, eta_min=0.5)
    (group,) = optimizer.param_groups
    for route in (float, torch.tensor):
        betas = [float(schedule(group, route(t), route(t))[0]) for t in (1.0, 11.0, 12.0, 30.0)]
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
        assert bias_correction(gamma, t).item() == pytest.approx(1 - gamma**3, rel=1e-6)


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


@pytest.mark.parametrize(
    ("build", "hyper"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adafactor, {}),
        (AdamP, {}),
        (SGDP, {"lr": 0.1, "momentum": 0.9}),
    ],
)
def test_after_a_reset_an_optimizer_is_as_new(build, hyper) -> None:
    grads = gradients(12)
    p = weight()
    optimizer = build([p], **hyper)
    MomentumReset(optimizer, 6)
    run(optimizer, p, grads[:5])
    fresh = nn.Parameter(p.detach().clone())
    want = run(build([fresh], **hyper), fresh, grads[5:9])
    torch.testing.assert_close(run(optimizer, p, grads[5:9]), want, rtol=1e-12, atol=1e-14)


class CountingAdam(torch.optim.Optimizer):
    """Adam that counts its steps in Python: a number of each parameter or, as fused ones do, of the group."""

    def __init__(self, params, by_group: bool = False, zero: object = 0) -> None:
        super().__init__(params, {"lr": 0.1, **({"step": copy.deepcopy(zero)} if by_group else {})})
        self.zero = zero

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            if "step" in group:
                group["step"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                own = self.state[p]
                if not own:
                    own.update(step=copy.deepcopy(self.zero), m=torch.zeros_like(p), v=torch.zeros_like(p))
                own["step"] += 1
                t = group.get("step", own["step"])
                own["m"].lerp_(p.grad, 0.1)
                own["v"].lerp_(p.grad**2, 0.001)
                p.sub_(group["lr"] * (own["m"] / (1 - 0.9**t)) / (own["v"] / (1 - 0.999**t)).sqrt())


@pytest.mark.parametrize(
    "zero", [0, 0.0, torch.zeros((), dtype=torch.float64)], ids=["int", "float", "tensor"]
)
@pytest.mark.parametrize("by_group", [False, True])
def test_a_count_in_python_starts_again(by_group: bool, zero: object) -> None:
    """With a gradient of 1 every step of Adam is the learning rate, after a reset as well."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = CountingAdam([p], by_group, zero)
    MomentumReset(optimizer, 50)
    path = run(optimizer, p, torch.ones(120, 2))
    torch.testing.assert_close(path.diff(dim=0), torch.full((119, 2), -0.1, dtype=torch.float64))
    count = optimizer.param_groups[0]["step"] if by_group else optimizer.state[p]["step"]
    assert count == 21
    assert type(count) is type(zero)


@pytest.mark.parametrize("mine", ["phase 1", None, True])
def test_what_is_called_step_and_is_no_number_stays(mine: object) -> None:
    p = weight()
    optimizer = torch.optim.SGD([{"params": [p], "step": mine}], 0.1, momentum=0.9)
    optimizer.state[p]["step"] = mine
    MomentumReset(optimizer, 2)
    run(optimizer, p, gradients(4))
    assert optimizer.param_groups[0]["step"] is mine
    assert optimizer.state[p]["step"] is mine


def test_the_count_of_a_group_starts_again_with_its_most_advanced_parameter() -> None:
    p, late, other = weight(), weight(), weight()
    optimizer = CountingAdam([{"params": [p, late]}, {"params": [other]}], by_group=True)
    MomentumReset(optimizer, 4)
    counts = []
    for t in range(9):
        p.grad = torch.ones_like(p)
        late.grad = torch.ones_like(p) if t > 1 else None
        other.grad = torch.ones_like(p) if t > 2 else None
        optimizer.step()
        counts.append([group["step"] for group in optimizer.param_groups])
    # A group counts every step of the optimizer; the second one's parameter is at its fourth in the seventh.
    assert [one for one, _ in counts] == [1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert [two for _, two in counts] == [1, 2, 3, 4, 5, 6, 1, 2, 3]


def test_a_reset_leaves_step_sizes_and_maxima() -> None:
    p, q = weight(), weight()
    rprop, amsgrad = torch.optim.Rprop([p]), torch.optim.Adam([q], amsgrad=True)
    for optimizer, param in ((rprop, p), (amsgrad, q)):
        run(optimizer, param, gradients(4))
    kept = rprop.state[p]["step_size"].clone(), amsgrad.state[q]["max_exp_avg_sq"].clone()
    for optimizer, param in ((rprop, p), (amsgrad, q)):
        MomentumReset(optimizer, 1)
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert torch.equal(rprop.state[p]["step_size"], kept[0])
    assert torch.equal(amsgrad.state[q]["max_exp_avg_sq"], kept[1])


def test_a_reset_leaves_the_step_size_of_a_parameter_that_is_one_number() -> None:
    p = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.ASGD([p], 0.1)
    MomentumReset(optimizer, 2)
    for _ in range(4):
        before = p.item()
        p.grad = torch.ones(())
        optimizer.step()
        assert p.item() < before


@pytest.mark.parametrize("foreach", [False, True])
def test_a_decay_that_takes_all_leaves_zero(foreach: bool) -> None:
    p = nn.Parameter(torch.tensor([5.0, -3.0]))
    optimizer = SPAM([p], 0.5, weight_decay=2.0, foreach=foreach)
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("build", TRANSFORMS)
def test_gradients_made_in_a_closure_are_transformed(build, by_name: bool) -> None:
    before, within = weight(), weight()
    calls = []
    for p in (before, within):
        optimizer = torch.optim.Adam([p], 1e-2)
        for transform in (build, AdaGN):
            transform(optimizer)

        def closure(p: nn.Parameter = p, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (p**2).sum() * (1 + len(calls) % 3)
            loss.backward()
            calls.append(loss)
            return loss

        calls.clear()
        for _ in range(6):
            if p is before:
                closure()
                assert optimizer.step() is None
            else:
                loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
                assert loss is calls[-1]
        assert len(calls) == 6
    assert torch.equal(within, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("build", TRANSFORMS)
def test_copies_of_a_transform_go_on_with_copies_of_its_optimizer(build, duplicate) -> None:
    grads = gradients(9, spike=50.0)
    p, plain = weight(), weight()
    optimizer = torch.optim.Adam([p], 1e-2)
    transform = build(optimizer)
    run(optimizer, p, grads[:5])
    twin, other = duplicate((optimizer, transform))
    (q,) = twin.param_groups[0]["params"]
    assert other.optimizer is twin
    assert torch.equal(run(twin, q, grads[5:]), run(optimizer, p, grads[5:]))
    transform.remove()
    freed, _ = duplicate((optimizer, transform))
    (q,) = freed.param_groups[0]["params"]
    plain.data.copy_(p.data)
    alone = torch.optim.Adam([plain], 1e-2)
    alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(run(freed, q, grads), run(alone, plain, grads))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_transforms_of_half_types_are_those_of_float32(dtype: torch.dtype, scale: float) -> None:
    for build in TRANSFORMS[:2]:
        grads = []
        for d in (torch.float32, dtype):
            p = nn.Parameter(torch.zeros(64, 64, dtype=d))
            optimizer = torch.optim.SGD([p], 0.0)
            build(optimizer)
            for t in range(3):
                g = torch.randn(64, 64, generator=torch.Generator().manual_seed(t)) * scale
                p.grad = g.to(dtype).to(d)
                optimizer.step()
            grads.append(p.grad.float())
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("build", TRANSFORMS)
def test_transforms_read_no_value_from_an_accelerator(build) -> None:
    with FakeTensorMode():  # reading a value of a fake tensor raises
        p = nn.Parameter(torch.empty(5, 4, device="cuda"))
        optimizer = torch.optim.Adam([p], foreach=True, capturable=True)
        transform = build(optimizer)
        for _ in range(2):
            p.grad = torch.empty(5, 4, device="cuda")
            optimizer.step()
        assert all(number.device.type == "cuda" for number in transform.state[p].values())


def test_tensors_of_any_size_are_transformed() -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in ((0,), (0, 3), (), (1,), (3, 0))]
    optimizer = torch.optim.Adam(params, 0.1)
    for build in TRANSFORMS:
        build(optimizer)
    for _ in range(5):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [p.detach().numel() for p in params] == [0, 0, 1, 1, 0]
    assert params[2] == params[3] < 1


def test_gradients_that_a_kernel_will_unscale_are_refused() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([p], 0.1, fused=True)
    AdaGN(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    p.grad = torch.tensor([3.0, 4.0, 0.0]) * 8
    with pytest.raises(RuntimeError, match=r"Call scaler\.unscale_"):
        scaler.step(optimizer)
    del optimizer.grad_scale, optimizer.found_inf  # which the scaler's step left there
    scaler.update()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    torch.testing.assert_close(p.grad.norm(), torch.tensor(1.0))


@pytest.mark.bad_input
def test_the_official_classes_state_cannot_go_on() -> None:
    """It keeps counters and decays outside its state dict."""
    p = weight()
    state = {0: {"step": 3, "exp_avg": torch.zeros(4, 3), "exp_avg_sq": torch.zeros(4, 3), "m_max_t": 1.0}}
    group = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
        "params": [0],
    }
    for optimizer in (StableSPAM([p]), SPAM([p])):
        with pytest.raises(ValueError, match=r"load_state_dict needs a state dict of .* lack"):
            optimizer.load_state_dict({"state": state, "param_groups": [group]})


@pytest.mark.bad_input
def test_transforms_of_what_they_cannot_treat() -> None:
    for build in (lambda p: torch.optim.LBFGS(p), lambda p: NormalizedGD(p, 1.0)):
        with pytest.raises(TypeError, match="computes its own within"):
            AdaGN(build([weight()]))
    optimizer = torch.optim.SGD([weight()], 0.1)
    with pytest.raises(TypeError, match="AdaClip works with an optimizer"):
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
    for other in (torch.optim.Adam([weight()]).state_dict(), AdaGN(optimizer).state_dict() | {7: {}}):
        with pytest.raises(ValueError, match="load_state_dict needs step, norm, norm_sq for each of 1"):
            AdaGN(optimizer).load_state_dict(other)
    for wrong in (torch.ones(3), 1.0):
        with pytest.raises(ValueError, match="as 0-d tensors"):
            AdaClip(optimizer).load_state_dict({0: {"step": wrong, "max": torch.ones(())}})
    table = nn.Embedding(4, 2, sparse=True)
    sparse = torch.optim.SGD(table.parameters(), 0.1)
    AdaClip(sparse)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense real gradients"):
        sparse.step()
