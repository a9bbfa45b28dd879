"""Distributed training equals one process: dots, norms and maxima are of the whole tensor, sharded or not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from processes import in_processes
from trueup.optim import SAM, SGDP, SPAM, AdaClip, AdaGN, AdamP, MomentumReset, StableSPAM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    # Before LayerNorm a weight is scale-invariant as a whole: the first one is projected in the layer view.
    # Of the last weight and bias, one row, the second process holds nothing.
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.LayerNorm(5), nn.Linear(5, 1)).double()


def transformed(params: Any) -> Optimizer:
    optimizer = torch.optim.AdamW(params, 1e-2, weight_decay=0.1)
    AdaClip(optimizer, 0.3)
    AdaGN(optimizer, (0.5, 0.6))
    MomentumReset(optimizer, 4)
    return optimizer


STABLE = {"lr": 1e-2, "weight_decay": 0.1, "gammas": (0.5, 0.6, 0.3), "reset_interval": 4}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamP": lambda params: AdamP(params, 1e-2, weight_decay=0.1),
    "SGDP": lambda params: SGDP(params, 1e-2, momentum=0.9, weight_decay=0.1),
    "StableSPAM": lambda params: StableSPAM(params, **STABLE, total_steps=8, amsgrad=True),
    "StableSPAM, official": lambda params: StableSPAM(params, **STABLE, variant="official"),
    "SPAM": lambda params: SPAM(params, 1e-2, spike_threshold=2.0, grad_accu_steps=1, reset_interval=4),
    "transforms": transformed,
}


def train(model: nn.Module, optimizer: Optimizer, rows: slice, sharp: bool, steps: int = 10) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()[rows]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        if sharp:
            SAM(optimizer, 0.1).step(closure)
        else:
            closure()
            optimizer.step()


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def compare(rank: int) -> None:
    half = slice(4 * rank, 4 * rank + 4)
    for name, build in OPTIMIZERS.items():
        for sharp in (False, True):
            alone, replicated, sharded = network(), network(), network()
            train(alone, build(alone.parameters()), slice(None), sharp)
            train(DistributedDataParallel(replicated), build(replicated.parameters()), half, sharp)
            fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
            # in the middle the training is saved, and goes on from its state dict
            first = build(sharded.parameters())
            train(sharded, first, half, sharp, steps=7)
            second = build(sharded.parameters())
            second.load_state_dict(first.state_dict())
            if name != "transforms":
                train(sharded, second, half, sharp, steps=3)
            else:
                train(sharded, first, half, sharp, steps=3)
            for model in (replicated, sharded):
                torch.testing.assert_close(
                    whole(model), whole(alone), rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
                )


def test_ddp_and_fsdp2_equal_one_process(tmp_path: Path) -> None:
    in_processes(compare, folder=tmp_path)


def shard_a_part(rank: int) -> None:
    for name, build in OPTIMIZERS.items():
        for sharp in (False, True):
            alone, sharded = network(), network()
            train(alone, build(alone.parameters()), slice(None), sharp)
            fully_shard(sharded[0], mesh=init_device_mesh("cpu", (2,)))
            # Both see all inputs: what is not sharded is not averaged either.
            train(sharded, build(sharded.parameters()), slice(None), sharp)
            torch.testing.assert_close(
                whole(sharded), whole(alone), rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_one_optimizer_takes_sharded_and_whole_parameters(tmp_path: Path) -> None:
    in_processes(shard_a_part, folder=tmp_path)


def spoil(rank: int) -> None:
    """A shard with a number that is not finite makes every process skip the tensor."""
    for value in (math.nan, math.inf):
        for spoiled in (0, 1):
            for build in (StableSPAM, SPAM):
                model = network()
                fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
                optimizer = build(model.parameters())
                before = [p.clone() for p in whole(model)]
                model(torch.ones(2, 6).double()).sum().backward()
                weight = model[0].weight
                if rank == spoiled:
                    weight.grad.to_local()[0, 0] = value
                optimizer.step()
                after = whole(model)
                assert torch.equal(after[0], before[0])
                assert not torch.equal(after[3], before[3])
                assert optimizer.state[weight]["step"] == 0


def test_a_spoiled_shard_is_seen_by_all(tmp_path: Path) -> None:
    in_processes(spoil, folder=tmp_path)


CHECKPOINTED: dict[str, Callable[[Any], Optimizer]] = {
    # the yardstick: what it survives, ours survive
    "AdamW": lambda params: torch.optim.AdamW(params, 1e-2, weight_decay=0.1),
    **{name: build for name, build in OPTIMIZERS.items() if name != "transforms"},
}


def checkpoint(rank: int, folder: str) -> None:
    """Sharded and whole distributed checkpoints are loaded twice, into a new optimizer, and go on exactly."""
    half = slice(4 * rank, 4 * rank + 4)
    for number, build in enumerate(CHECKPOINTED.values()):
        for full in (False, True):
            options = StateDictOptions(full_state_dict=full)
            models = []
            for interrupted in (False, True):
                model = network()
                fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
                optimizer = build(model.parameters())
                train(model, optimizer, half, sharp=False, steps=5)
                if interrupted:
                    path = f"{folder}/{number}-{full}"
                    dcp.save(get_optimizer_state_dict(model, optimizer, options=options), checkpoint_id=path)
                    model.zero_grad()
                    optimizer = build(model.parameters())
                    for _ in range(2):
                        state = get_optimizer_state_dict(model, optimizer, options=options)
                        dcp.load(state, checkpoint_id=path)
                        set_optimizer_state_dict(model, optimizer, state, options=options)
                train(model, optimizer, half, sharp=False, steps=5)
                models.append(model)
            torch.testing.assert_close(*map(whole, models), rtol=0, atol=0)


def test_distributed_checkpoints_of_sharded_models(tmp_path: Path) -> None:
    in_processes(checkpoint, str(tmp_path / "checkpoints"), folder=tmp_path)


def reset(rank: int) -> None:
    """A transform of an optimizer whose state is divided finds the state of its process."""
    half = slice(4 * rank, 4 * rank + 4)
    alone, replicated = network(), DistributedDataParallel(network())
    plain = torch.optim.Adam(alone.parameters(), 1e-2)
    divided = ZeroRedundancyOptimizer(replicated.parameters(), torch.optim.Adam, lr=1e-2)
    for optimizer in (plain, divided):
        AdaClip(optimizer, 0.3)
        MomentumReset(optimizer, 4)
    train(alone, plain, slice(None), sharp=False)
    train(replicated, divided, half, sharp=False)
    torch.testing.assert_close(whole(replicated), whole(alone), rtol=1e-9, atol=1e-11)


def test_transforms_where_state_is_divided(tmp_path: Path) -> None:
    in_processes(reset, folder=tmp_path)


def divide(rank: int) -> None:
    """An optimizer whose state is divided between processes by torch's own wrapper equals one that is not."""
    half = slice(4 * rank, 4 * rank + 4)
    for name, build in CHECKPOINTED.items():
        alone, replicated = network(), DistributedDataParallel(network())
        train(alone, build(alone.parameters()), slice(None), sharp=False)

        def divided(replicated: nn.Module = replicated, build: Any = build) -> Any:
            return ZeroRedundancyOptimizer(
                replicated.parameters(), lambda params, build=build, **_: build(params), lr=1e-2
            )

        first = divided()
        train(replicated, first, half, sharp=False, steps=5)
        first.consolidate_state_dict(to=0)
        shared = [first.state_dict() if rank == 0 else None]
        dist.broadcast_object_list(shared, src=0)
        second = divided()
        for _ in range(2):
            second.load_state_dict(copy.deepcopy(shared[0]))
        train(replicated, second, half, sharp=False, steps=5)
        torch.testing.assert_close(
            whole(replicated), whole(alone), rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_state_divided_between_processes(tmp_path: Path) -> None:
    in_processes(divide, folder=tmp_path)
