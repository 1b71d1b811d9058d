"""Smaller levels of images and masks, each made from the level above, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unet.planning.axes import Sizes
from unet.planning.geometry import Box
from unet.stages.downsample import downsample
from unet.storage.ledger import Written
from unet.storage.store import ArrayRef

READ_BYTES = 1 << 26  # of a level that are read at once: of many channels a few, but at least one


@dataclass(frozen=True)
class LevelJob:
    """Make one level of a pyramid from the level above, a block at a time.

    factors     1 or 2 on (t, z, y, x): by how much the level is smaller than the one above
    kind        "mean" or "mode"
    """

    name: str
    above: ArrayRef
    level: ArrayRef
    factors: Sizes
    kind: str

    def open(self) -> Callable[[int], Written]:
        """Open both levels on a worker."""
        above, level = self.above.open(), self.level.open()
        size = above.array.dtype.itemsize
        at_once = channels_at_once(level.grid.block, math.prod(self.factors), size)
        parts = above.by_channels(at_once)

        def shrink(index: int) -> Written:
            box = level.grid.box(index)
            start = tuple(a * f for a, f in zip(box.start, self.factors, strict=True))
            stop = tuple(b * f for b, f in zip(box.stop, self.factors, strict=True))
            larger = Box(start, stop).clip(above.grid.shape)
            smaller = [downsample(part.read(larger), self.factors, self.kind) for part in parts]
            return level.write_block(index, np.concatenate(smaller, axis=1))

        return shrink


def channels_at_once(block: Sizes, larger: int, itemsize: int) -> int:
    """How many channels of the level above, `larger` times as many pixels, are read for a block."""
    return max(1, READ_BYTES // (math.prod(block) * larger * itemsize))
