"""StableSPAM and SPAM steps on CPU, against torch's fused AdamW and against the plain functions."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from benchmarks.adamp import PLAIN, Plain, fused, resnet50, row, transformer
from benchmarks.harness import Row
from trueup.optim import SPAM, StableSPAM, _spam, _stable_spam


def stable_spam(params: list[nn.Parameter]) -> StableSPAM:
    return StableSPAM(params, 0.0)


def plain_stable_spam(params: list[nn.Parameter]) -> Plain:
    return Plain(stable_spam(params), _stable_spam.stable_spam)


def spam(params: list[nn.Parameter]) -> SPAM:
    return SPAM(params, 0.0)


def plain_spam(params: list[nn.Parameter]) -> Plain:
    return Plain(spam(params), _spam.spam)


def rows() -> Iterator[Row]:
    resnet, large = resnet50(), transformer()
    yield row("StableSPAM step, ResNet-50", "AdamW(fused)", 3.2, resnet, stable_spam, fused)
    yield row("StableSPAM step, ResNet-50", PLAIN, 0.25, resnet, stable_spam, plain_stable_spam)
    yield row("StableSPAM step, 12 x 768 transformer", "AdamW(fused)", 3.2, large, stable_spam, fused)
    yield row("StableSPAM step, 12 x 768 transformer", PLAIN, 0.5, large, stable_spam, plain_stable_spam)
    yield row("SPAM step, ResNet-50", PLAIN, 0.6, resnet, spam, plain_spam)
