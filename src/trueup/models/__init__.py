"""The small networks that studies train."""

from trueup.models.convnet import convnet
from trueup.models.mlp import mlp
from trueup.models.resnet import cifar_resnet

__all__ = ["cifar_resnet", "convnet", "mlp"]
