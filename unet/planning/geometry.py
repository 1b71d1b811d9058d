"""Where things lie: boxes of pixels, the blocks that partition an image, its mirrored borders.

Pure functions on integers. All positions are pixels from the image's origin on the grid axes
(t, z, y, x); all intervals are half open. The laws that make tiling exact, each a property test:

    blocks partition the image;
    cores partition their block, and start on multiples of the network's stride (`lattice`);
    a window is its core and the halo around it, whatever the block, the core's size or the border;
    outside the image its mirror is read, from the whole image and never from a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unet.planning.axes import Sizes

Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Box:
    """The pixels from `start` up to, not including, `stop`, one number for each axis."""

    start: Sizes
    stop: Sizes

    def __str__(self) -> str:
        return " x ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> Sizes:
        """Its length on each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """What cuts it out of an array on the same axes."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def grow(self, halo: Halo) -> Box:
        """This box and the halo around it."""
        return Box(
            tuple(a - before for a, (before, _) in zip(self.start, halo, strict=True)),
            tuple(b + after for b, (_, after) in zip(self.stop, halo, strict=True)),
        )

    def clip(self, shape: Sizes) -> Box:
        """The part of this box inside an image of `shape`."""
        return Box(
            tuple(max(a, 0) for a in self.start),
            tuple(min(b, size) for b, size in zip(self.stop, shape, strict=True)),
        )

    def relative_to(self, origin: Sizes) -> Box:
        """This box counted from `origin`."""
        return Box(
            tuple(a - o for a, o in zip(self.start, origin, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin, strict=True)),
        )


@dataclass(frozen=True)
class BlockGrid:
    """The blocks that partition an image, counted in row-major order and never listed.

    shape  (t, z, y, x) of the image
    block  (t, z, y, x) of a block: one shard, one task, one owner
    """

    shape: Sizes
    block: Sizes

    @property
    def counts(self) -> Sizes:
        """How many blocks cover the image on each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.block, strict=True))

    @property
    def count(self) -> int:
        """How many blocks the image has."""
        return math.prod(self.counts)

    def position(self, index: int) -> Sizes:
        """Where block number `index` is among the blocks, on each axis."""
        return tuple(map(int, np.unravel_index(index, self.counts)))

    def box(self, index: int) -> Box:
        """The pixels of block number `index`: of the last on an axis, those inside the image."""
        start = tuple(p * step for p, step in zip(self.position(index), self.block, strict=True))
        stop = tuple(a + step for a, step in zip(start, self.block, strict=True))
        return Box(start, stop).clip(self.shape)


def round_up(size: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `size`."""
    return -(-size // step) * step


def grow_block(piece: Sizes, shape: Sizes, spatial: int, pixels: int) -> Sizes:
    """Double a piece of an image until it has `pixels` or is the image.

    The shortest of the last `spatial` axes grows first; when they are covered, the others do.
    """
    sides = list(piece)
    first = len(sides) - spatial
    while math.prod(sides) < pixels:
        short = [axis for axis, side in enumerate(sides) if side < shape[axis]]
        if not short:
            break
        sides[min(short, key=lambda axis: (axis < first, sides[axis]))] *= 2
    return tuple(sides)


def runs(indices: Iterable[int], chunk: int = 1) -> list[tuple[int, int]]:
    """The reads that fetch these indices of an axis, each as (first, last + 1).

    Indices with a gap between them share a read where they lie in one chunk, so that no chunk is
    decoded twice.

    chunk  how many indices are compressed together
    """
    needed = sorted(set(indices))
    breaks = [
        i for i, (a, b) in enumerate(pairwise(needed), 1) if b > a + 1 and b // chunk > a // chunk
    ]
    groups = [needed[a:b] for a, b in pairwise([0, *breaks, len(needed)])]
    return [(group[0], group[-1] + 1) for group in groups]


def slab_range(slab: int, slabs: int, blocks: int) -> range:
    """The blocks of slab `slab` of `slabs`: contiguous, within one block of equal length."""
    return range(slab * blocks // slabs, (slab + 1) * blocks // slabs)


def mirror(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """The image index of each position start..stop on an axis of `size` pixels.

    Positions outside are mirrored at the edge pixel, which is not repeated, as often as needed:
    ... 2 1 0 1 2 ... size-1 size-2 ... An axis of one pixel repeats it. (Ronneberger 2015, fig. 2)
    """
    period = max(2 * (size - 1), 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(stop - start, np.intp)


def read_mirrored(
    read: Callable[[Box], NDArray[np.generic]], box: Box, shape: Sizes
) -> NDArray[np.generic]:
    """The pixels of a box that may reach outside the image, as (t, c, z, y, x).

    read   what reads a box inside the image; it is asked once, for the smallest box that holds
           every mirrored pixel
    shape  (t, z, y, x) of the image
    """
    indices = [mirror(a, b, size) for a, b, size in zip(box.start, box.stop, shape, strict=True)]
    inside = Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices))
    pixels = read(inside)
    for axis, index, start, length in zip(
        (0, 2, 3, 4), indices, inside.start, inside.shape, strict=True
    ):
        if not np.array_equal(index - start, np.arange(length)):
            pixels = pixels.take(index - start, axis=axis)
    return pixels
