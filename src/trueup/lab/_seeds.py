"""The seeds that a verdict may use, and the named generators that derive from a seed.

Seeds 0-99 are for development and tuning. Published seeds come from a hash, so that nobody picks them.
"""

from __future__ import annotations

import hashlib

import numpy as np

DEVELOPMENT = range(100)


def tuning_seeds(n: int) -> list[int]:
    """Return the first `n` development seeds."""
    return list(range(n))


def published_seeds(slug: str, protocol: int, look: int, n: int) -> list[int]:
    """Return `n` fresh seeds of one look, drawn from sha256(slug, protocol, look) and outside 0-99.

    >>> published_seeds("adamp", 1, 1, 2) == published_seeds("adamp", 1, 1, 10)[:2]
    True
    """
    return _draw(f"{slug}/{protocol}/{look}", n)


def replicate_seeds(slug: str, protocol: int, attempt: int, look: int, n: int) -> list[int]:
    """Return fresh seeds of the `attempt`-th replication of a published verdict."""
    return _draw(f"{slug}/{protocol}/{look}/replicate-{attempt}", n)


def child_sequence(seed: int, name: str) -> np.random.SeedSequence:
    """Return the seed of a child generator for one use (`"split"`, `"init"`); it is equal across arms."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.SeedSequence([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])


def _draw(text: str, n: int) -> list[int]:
    seeds: list[int] = []
    counter = 0
    while len(seeds) < n:
        seed = int.from_bytes(hashlib.sha256(f"{text}/{counter}".encode()).digest()[:4], "big")
        if seed not in DEVELOPMENT and seed not in seeds:
            seeds.append(seed)
        counter += 1
    return seeds
