"""The plain supervised procedure that studies share."""

from trueup.training.supervised import evaluate, minibatches, train

__all__ = ["evaluate", "minibatches", "train"]
