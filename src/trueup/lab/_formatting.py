"""Numbers as people read them: in sentences, on the terminal and on the report's pages.

A minus is a minus sign, thousands are separated, an interval is rounded like its mean, and a missing number
is a dash.
"""

from __future__ import annotations

import math

MINUS = "−"
NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with at most `digits` significant digits; a missing one is a dash.

    >>> number(0.20000001), number(-1234.5), number(4e-14), number(float("inf")), number(None)
    ('0.2', '−1,234', '4e-14', 'infinity', '–')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("infinity" if value > 0 else MINUS + "infinity")
    size = abs(value)
    if size == 0 or 1e-4 <= size < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
        text = f"{size:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return (MINUS if value < 0 else "") + text


def fixed(value: float | None, decimals: int) -> str:
    """Format a number with a fixed number of decimals; zero has no sign.

    >>> fixed(-1234.56, 1), fixed(-0.04, 1), fixed(None, 1)
    ('−1,234.6', '0.0', '–')
    """
    if value is None:
        return NONE
    text = f"{abs(value):,.{decimals}f}"
    return (MINUS if value < 0 and float(text.replace(",", "")) else "") + text


def rounded(mean: float, low: float | None, high: float | None) -> tuple[str, str, str]:
    """Round a mean and its interval alike: to two digits of the interval's width, where that is readable.

    >>> rounded(0.61234, 0.3141, 0.9201), rounded(0.6, 0.3, 0.9), rounded(2.0, None, None)
    (('0.61', '0.31', '0.92'), ('0.6', '0.3', '0.9'), ('2', '–', '–'))
    """
    width = high - low if low is not None and high is not None else 0.0
    decimals = max(0, 1 - math.floor(math.log10(width))) if 0 < width < math.inf else 7
    if decimals > 6 or width < 1e-9 * abs(mean):
        return number(mean), number(low), number(high)
    texts = [fixed(v, decimals) for v in (mean, low, high)]
    while "." in texts[0] and all(t.endswith(("0", ".")) for t in texts):  # 0.60, 0.30, 0.90: 0.6, 0.3, 0.9
        texts = [t[:-1] for t in texts]
    return texts[0], texts[1], texts[2]


def plural(count: int, noun: str, many: str = "") -> str:
    """Put a count before its noun.

    >>> plural(1, "seed"), plural(1200, "seed"), plural(2, "is stale", "are stale")
    ('1 seed', '1,200 seeds', '2 are stale')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {many or noun + 's'}"


def percent(level: float | None) -> str:
    """Format a share as a percentage.

    >>> percent(0.95)
    '95 %'
    """
    return NONE if level is None else f"{number(100 * level, 4)} %"


def duration(seconds: float | None) -> str:
    """Format seconds.

    >>> duration(0.25), duration(75), duration(7300)
    ('0.25 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{number(seconds, 2 if seconds < 10 else 3)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def memory(size: float | None) -> str:
    """Format bytes; "not measured" for `None`.

    >>> memory(3 * 2**20), memory(None)
    ('3 MB', 'not measured')
    """
    if size is None:
        return "not measured"
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{number(size)} {unit}"
        size /= 1024
    return f"{number(size)} GB"
