from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """timm asks whether a module is one."""
