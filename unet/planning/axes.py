"""The one order of axes inside the project.

An array is always (t, c, z, y, x). Positions and sizes of blocks, windows and cores need no
channels: they are on the grid (t, z, y, x).
"""

from __future__ import annotations

ORDER = "tczyx"
GRID = "tzyx"
