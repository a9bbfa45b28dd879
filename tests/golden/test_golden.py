"""Every reference value of every case, against what our implementation gives."""

from __future__ import annotations

from golden.reference import Reference, check, kinds


def test_golden(golden: Reference) -> None:
    check(golden, kinds(golden.slug))
