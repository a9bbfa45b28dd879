"""The small networks that studies train."""

from trueup.models.cifar_resnet import CifarResNet
from trueup.models.convnet import convnet
from trueup.models.mlp import mlp

__all__ = ["CifarResNet", "convnet", "mlp"]
