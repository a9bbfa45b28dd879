"""The small networks that studies train."""

from trueup.models.cifar_resnet import CifarResNet
from trueup.models.convnet import convnet
from trueup.models.decoder import Decoder
from trueup.models.mlp import mlp
from trueup.models.preact_resnet import PreActResNet

__all__ = ["CifarResNet", "Decoder", "PreActResNet", "convnet", "mlp"]
