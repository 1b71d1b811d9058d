"""The one order of axes inside the project.

An array is always (t, c, z, y, x). Positions and sizes of blocks, windows and cores need no
channels: they are on the grid (t, z, y, x).
"""

from __future__ import annotations

ORDER = "tczyx"
GRID = "tzyx"

Sizes = tuple[int, ...]


def with_channels(sizes: Sizes, channels: int) -> Sizes:
    """(t, z, y, x) and a number of channels, as (t, c, z, y, x)."""
    return (sizes[0], channels, *sizes[1:])


def without_channels(sizes: Sizes) -> Sizes:
    """(t, c, z, y, x), as (t, z, y, x)."""
    t, _, *zyx = sizes
    return (t, *zyx)
