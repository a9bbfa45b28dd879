"""Sharded parameters: the angle that decides, and the part removed, are those of the whole tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from processes import in_processes
from trueup.optim import SGDP, SPAM, AdamP, StableSPAM


def network() -> nn.Module:
    torch.manual_seed(0)
    # before LayerNorm a weight is scale-invariant as a whole, so the first one is projected in the layer view
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def compare(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    for build, hyper in (
        (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
        (SGDP, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
        (StableSPAM, {"lr": 1e-2, "weight_decay": 0.1, "gammas": (0.5, 0.6, 0.3), "reset_interval": 4}),
        (SPAM, {"lr": 1e-2, "spike_threshold": 2.0, "grad_accu_steps": 1, "reset_interval": 4}),
    ):
        whole, sharded = network(), network()
        fully_shard(sharded, mesh=mesh)
        for model in (whole, sharded):
            optimizer = build(model.parameters(), **hyper)
            for _ in range(10):
                optimizer.zero_grad()
                model(inputs).square().sum().backward()
                optimizer.step()
        for mine, reference in zip(sharded.parameters(), whole.parameters()):
            torch.testing.assert_close(mine.full_tensor(), reference, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo")
def test_fsdp2_equals_one_process(tmp_path: Path) -> None:
    in_processes(compare, folder=tmp_path)
