"""He's initial weights for nets that have no normalization."""

from __future__ import annotations

from torch import nn


def he_initialize_(model: nn.Module, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    """Draw the weights of some layers from He's normal distribution; start every bias of the model at zero.

    The variance 2 / fan-in keeps the power of the signal in a net with ReLUs; torch's own is smaller.

    Args:
        types: classes of the layers whose weights are drawn; `()` draws none.

    Source: He et al. 2015, arXiv 1502.01852, equation 10.

    >>> net = nn.Sequential(nn.Linear(100, 100))
    >>> he_initialize_(net, nn.Linear)
    >>> bool((net[0].bias == 0).all()), bool((net[0].weight.std() - 0.02**0.5).abs() < 0.01)
    (True, True)
    """
    for layer in model.modules():
        if isinstance(layer, types):
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
