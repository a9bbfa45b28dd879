from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """A class that timm uses in `isinstance`."""
