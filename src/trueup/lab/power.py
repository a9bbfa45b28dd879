"""How many seeds an effect needs, and which effect a number of seeds can find: noncentral t."""

from __future__ import annotations

import math

from scipy import optimize, stats


def power(effect_sd: float, n: int, alpha: float) -> float:
    """Chance that a one-sided t-test on ``n`` seeds finds an effect of ``effect_sd`` standard deviations.

    >>> round(power(1.16, 10, 0.005), 2), round(power(0.66, 20, 0.02), 2)
    (0.66, 0.77)
    """
    if n < 2:
        return 0.0
    critical = stats.t.ppf(1 - alpha, n - 1)
    return float(stats.nct.sf(critical, n - 1, effect_sd * math.sqrt(n)))


def detectable(n: int, alpha: float, wanted: float = 0.8) -> float:
    """The smallest effect, in standard deviations, found with the wanted power."""
    return float(optimize.brentq(lambda e: power(e, n, alpha) - wanted, 1e-6, 1e3))


def seeds_needed(effect_sd: float, alpha: float, wanted: float = 0.8, most: int = 1000) -> int | None:
    """Seeds that find such an effect with the wanted power; ``None`` if more than ``most``.

    >>> seeds_needed(1.0, 0.025)
    10
    """
    effect_sd = abs(effect_sd)
    if effect_sd == 0 or power(effect_sd, most, alpha) < wanted:
        return None
    low, high = 2, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect_sd, middle, alpha) >= wanted else (middle + 1, high)
    return low
