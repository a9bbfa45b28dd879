"""Power of the t-test: how many seeds an effect needs, and which effect a number of seeds can find.

The verdict rule also needs a sign-flip test, which costs some power: ten seeds find an effect of 1.16
standard deviations in over 80 % of studies at .025, and in about 60 % at .005 (66 % by the t-test alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from trueup.lab._verdict import Judgement, fewest_seeds


def power(effect_sd: float, n: int, alpha: float) -> float:
    """Return the chance that a one-sided t-test on `n` seeds finds an effect, in standard deviations.

    It is zero if `n` is below the fewest seeds that can decide anything: 6 at .025, 8 at .005.

    >>> round(power(1.16, 10, 0.005), 2), round(power(0.66, 20, 0.02), 2)
    (0.66, 0.77)
    """
    if n < fewest_seeds(alpha):
        return 0.0
    critical = stats.t.ppf(1 - alpha, n - 1)
    found = float(stats.nct.sf(critical, n - 1, effect_sd * math.sqrt(n)))
    # scipy gives NaN for an effect beyond what it computes; one above 0 is always found
    return float(effect_sd > 0) if math.isnan(found) else found


def detectable(n: int, alpha: float, wanted: float = 0.8) -> float:
    """Return the smallest effect, in standard deviations, that is found with the wanted power.

    >>> [round(detectable(n, 0.025), 2) for n in (8, 10, 20)]
    [1.16, 1.0, 0.66]
    >>> round(detectable(10, 0.005), 2), round(detectable(20, 0.02), 2)
    (1.33, 0.69)
    """
    if n < (fewest := fewest_seeds(alpha)):
        raise ValueError(f"{n} seeds cannot decide anything at alpha = {alpha}: give at least {fewest}")
    return float(optimize.brentq(lambda e: power(e, n, alpha) - wanted, 1e-6, 1e3))


def seeds_needed(effect_sd: float, alpha: float, wanted: float = 0.8, most: int = 1000) -> int | None:
    """Return how many seeds find such an effect with the wanted power; `None` if more than `most`.

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


def more_seeds(judgement: Judgement, links: Sequence[Judgement] = ()) -> int | None:
    """Return how many more seeds an undecided judgement needs, if its effect is as it looks now.

    The effect is the distance of the mean from the nearest threshold of the rule; an ordering needs as many
    as its most demanding undecided link. The result is `None` if seeds do not help (decided, the problem did
    not arise, an arm at its grid's edge), if a single seed leaves the spread unknown, if the mean lies on the
    threshold, or if it would take more than a thousand seeds.

    >>> from trueup.lab._verdict import judge
    >>> more_seeds(judge([1.0, -0.4, 0.9, -0.1, 0.8, -0.2], 0.1, alpha=0.025))
    54
    """
    if judgement.outcome != "inconclusive":
        return None
    undecided = [link for link in links if link.outcome == "inconclusive"]
    if undecided:
        each = [more_seeds(link) for link in undecided]
        return None if None in each else max(more for more in each if more is not None)
    if judgement.note not in ("", "uneven seeds", "too few seeds") or judgement.mean is None:
        return None
    if judgement.n < 2:
        return None
    fewest = max(1, fewest_seeds(judgement.alpha) - judgement.n)
    m = judgement.margin
    distance = {
        "superiority": abs(judgement.mean - m),
        "non-inferiority": abs(judgement.mean + m),
        "equivalence": abs(abs(judgement.mean) - m),
    }[judgement.test]
    sd = float(np.std(judgement.d, ddof=1))
    if sd == 0:
        return fewest if judgement.note == "too few seeds" else None
    needed = seeds_needed(distance / sd, judgement.alpha)
    return None if needed is None else max(fewest, needed - judgement.n)
