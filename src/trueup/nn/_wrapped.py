"""Models that are wrapped for distributed training, which counts their parameters once and for all."""

from __future__ import annotations

from torch import nn

__all__ = ["refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise if a part of the model is inside `DistributedDataParallel` or fully sharded.

    >>> refuse_wrapped(nn.Linear(2, 2))
    """
    # By the name of the class: importing fully sharded data parallelism costs every user a second.
    wrappers = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"}
    if any(kind.__name__ in wrappers for module in model.modules() for kind in type(module).__mro__):
        raise ValueError(
            "the model is wrapped for distributed training, which would not know the parameters of new "
            "modules: change the model first, and wrap the changed one"
        )
