"""Small networks that studies train, and the layers and initial weights of their control arms."""

from trueup.models._cifar_resnet import CifarResNet
from trueup.models._convnet import convnet
from trueup.models._decoder import Decoder
from trueup.models._he_initialize import he_initialize_
from trueup.models._mlp import mlp
from trueup.models._norm_controls import GainAndBias, GroupScaling, TokenBatchNorm
from trueup.models._preact_resnet import PreActResNet
from trueup.models._sequence_classifier import SequenceClassifier, lstm_classifier

__all__ = [
    "CifarResNet",
    "Decoder",
    "GainAndBias",
    "GroupScaling",
    "PreActResNet",
    "SequenceClassifier",
    "TokenBatchNorm",
    "convnet",
    "he_initialize_",
    "lstm_classifier",
    "mlp",
]
