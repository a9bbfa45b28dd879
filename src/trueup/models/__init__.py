"""The small networks that studies train."""

from trueup.models._cifar_resnet import CifarResNet
from trueup.models._convnet import convnet
from trueup.models._decoder import Decoder
from trueup.models._he_initialize import he_initialize_
from trueup.models._mlp import mlp
from trueup.models._preact_resnet import PreActResNet
from trueup.models._sequence_classifier import SequenceClassifier

__all__ = ["CifarResNet", "Decoder", "PreActResNet", "SequenceClassifier", "convnet", "he_initialize_", "mlp"]
