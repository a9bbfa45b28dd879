"""Refuse to change the parameters of a model that is wrapped for distributed training.

The wrapper registers the parameters when it is made, and would miss those of new modules.
"""

from __future__ import annotations

from torch import nn

__all__ = ["refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise an error if the model, or a part of it, is inside `DistributedDataParallel` or fully sharded.

    >>> refuse_wrapped(nn.Linear(2, 2))
    """
    # Compare names of classes, because importing torch.distributed.fsdp takes a second.
    wrappers = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"}
    if any(kind.__name__ in wrappers for module in model.modules() for kind in type(module).__mro__):
        raise ValueError(
            "the model is wrapped for distributed training, which would miss the parameters of new modules: "
            "change the model first, and wrap the changed one"
        )
