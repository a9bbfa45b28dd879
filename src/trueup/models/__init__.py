"""The small networks that studies train."""

from trueup.models.cifar_resnet import CifarResNet
from trueup.models.convnet import convnet
from trueup.models.decoder import Decoder
from trueup.models.mlp import mlp
from trueup.models.preact_resnet import PreActResNet
from trueup.models.sequence_classifier import SequenceClassifier

__all__ = ["CifarResNet", "Decoder", "PreActResNet", "SequenceClassifier", "convnet", "mlp"]
