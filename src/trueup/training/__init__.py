"""Plain supervised training, and language modeling on one long text."""

from trueup.training._supervised import Update, evaluate, minibatches, train, warmup_cosine
from trueup.training._text import even_windows, next_symbol_loss, random_windows, split_text

__all__ = [
    "Update",
    "evaluate",
    "even_windows",
    "minibatches",
    "next_symbol_loss",
    "random_windows",
    "split_text",
    "train",
    "warmup_cosine",
]
