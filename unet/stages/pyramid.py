"""Smaller levels of images and masks: means of pixels, the most frequent of labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.planning.axes import Sizes
from unet.planning.geometry import Box
from unet.storage.ledger import Written
from unet.storage.store import ArrayRef

Values = NDArray[Any]

STRIP = 1 << 18  # values
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
        above, level = self.above.open(), self.level.open(writable=True)
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


def downsample(values: Values, factors: Sizes, kind: str) -> Values:
    """Halve the axes of `values` (t, c, z, y, x) whose factor on (t, z, y, x) is 2.

    At an odd end a pixel stands for the pixels there are. Done in strips that fit a CPU's cache.
    """
    five = (factors[0], 1, *factors[1:])
    short = [(0, -n % f) for n, f in zip(values.shape, five, strict=True)]
    if any(after for _, after in short):
        values = np.pad(values, short, mode="edge")
    small = np.empty([n // f for n, f in zip(values.shape, five, strict=True)], values.dtype)
    combine = mean if kind == "mean" else mode
    rows = max(1, STRIP * small.shape[3] // values.size)
    for y in range(0, small.shape[3], rows):
        strip = values[:, :, :, y * five[3] : (y + rows) * five[3]]
        small[:, :, :, y : y + rows] = combine(
            [
                np.ascontiguousarray(
                    strip[tuple(slice(a, None, f) for a, f in zip(start, five, strict=True))]
                )
                for start in product(*(range(f) for f in five))
            ]
        )
    return small


def mean(samples: list[Values]) -> Values:
    """The mean of arrays of one shape and dtype; integers are rounded, halves up."""
    dtype = samples[0].dtype
    if dtype.kind not in "iu":
        total = np.sum(samples, axis=0, dtype=np.float64)
        return (total / len(samples)).astype(dtype)
    wide = np.uint16 if dtype == np.uint8 else np.int64
    sums: NDArray[Any] = samples[0].astype(wide)
    for sample in samples[1:]:
        np.add(sums, sample, out=sums, casting="unsafe")
    # The number of samples is a power of two, and shifting rounds down, below zero too.
    halves, shift = len(samples) // 2, len(samples).bit_length() - 1
    means: NDArray[Any] = np.right_shift(sums + halves, shift).astype(dtype)
    return means


def mode(samples: list[Values]) -> Values:
    """The most frequent value at each place of arrays of one shape; of several, the smallest."""
    ordered = list(samples)
    for end in range(len(ordered) - 1, 0, -1):  # sorts the samples of each place
        for i in range(end):
            low, high = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = np.minimum(low, high), np.maximum(low, high)
    best = ordered[0]
    run = most = np.ones(best.shape, np.uint8)
    for before, here in pairwise(ordered):
        run = run * (before == here) + np.uint8(1)
        best = np.where(run > most, here, best)
        most = np.maximum(most, run)
    return best
