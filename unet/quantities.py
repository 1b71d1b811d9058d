"""How a message tells bytes or operations: with three digits, in the unit that suits them."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
LARGEST = 999.5  # what three digits do not round up to a thousand


def with_prefix(value: float, unit: str) -> str:
    """Such as "12.3 MB" for 12,345,678 "B": a thousand is the next prefix."""
    for prefix in PREFIXES[:-1]:
        if value < LARGEST:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} {PREFIXES[-1]}{unit}"
