"""The cost of converting a network of a hundred layers: milliseconds, and bytes of weights copied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from torch import nn

from benchmarks.harness import Measured
from trueup.nn import EvoNorm2dS0, GhostBatchNorm2d, convert

LAYERS = 100


def rows() -> Iterator[Measured]:
    what = f"convert in place, {LAYERS} x (convolution, batch norm, ReLU) of 64 channels"
    yield Measured(
        f"{what}, to GhostBatchNorm2d",
        "",
        milliseconds(lambda model: convert(model, nn.BatchNorm2d, GhostBatchNorm2d, inplace=True)),
        "ms",
        bound=50.0,
    )
    yield Measured(
        f"{what}, to EvoNorm2dS0, activations found by torch.fx",
        "",
        milliseconds(lambda model: convert(model, nn.BatchNorm2d, EvoNorm2dS0, inplace=True)),
        "ms",
        bound=50.0,
    )
    model = network()
    before = {name: t.data_ptr() for name, t in model.state_dict().items()}
    convert(model, nn.BatchNorm2d, EvoNorm2dS0, inplace=True)
    copied = sum(
        t.nbytes for name, t in model.state_dict().items() if before.get(name, t.data_ptr()) != t.data_ptr()
    )
    yield Measured("convert in place, bytes of weights copied", "", copied, "bytes", bound=0.0)


def network() -> nn.Module:
    layer = [
        (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(LAYERS)
    ]
    return nn.Sequential(*[nn.Sequential(*modules) for modules in layer])


def milliseconds(conversion: Callable[[nn.Module], nn.Module], rounds: int = 15) -> float:
    """Return the median time to convert a new network, after one warm-up conversion."""
    seconds = []
    for _ in range(rounds + 1):
        model = network()
        start = time.perf_counter()
        conversion(model)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])
