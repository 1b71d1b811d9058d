"""Where a network's windows may lie.

Why a lattice: a network that pools commutes only with shifts that are multiples of its stride. So
every core starts on a multiple of the stride, and its window reaches beyond it by one fixed halo.

A network sees the last 2 or 3 axes of (t, z, y, x). The other axes are done one index at a time:
there the stride is 1 and the halo 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self

from unet.model.architecture import Architecture
from unet.planning.axes import GRID, Sizes
from unet.planning.geometry import BlockGrid, Box, Halo, round_up


@dataclass(frozen=True)
class Lattice:
    """The stride and the halo of a network on (t, z, y, x), and how many axes it sees.

    dims  2 or 3: the network sees the last `dims` axes
    """

    stride: Sizes
    halo: Halo
    dims: int

    @classmethod
    def of(cls, architecture: Architecture) -> Self:
        """Of a network."""
        unseen = len(GRID) - architecture.dims
        return cls(
            stride=(1,) * unseen + architecture.stride,
            halo=((0, 0),) * unseen + architecture.halo,
            dims=architecture.dims,
        )

    def unseen(self, sizes: Sizes) -> Sizes:
        """The numbers of `sizes` that belong to the axes that the network does not see."""
        return sizes[: len(GRID) - self.dims]

    def spatial(self, sizes: Sizes) -> Sizes:
        """The numbers of `sizes` that belong to the axes that the network sees."""
        return sizes[len(GRID) - self.dims :]

    def one_pass(self, sizes: Sizes) -> Sizes:
        """The largest part of `sizes` that the network sees at once."""
        return (1,) * (len(GRID) - self.dims) + self.spatial(sizes)

    def cover(self, sizes: Sizes) -> Sizes:
        """The smallest multiples of the stride that are not below `sizes`."""
        return tuple(round_up(size, step) for size, step in zip(sizes, self.stride, strict=True))

    def reads(self, box: Box) -> Box:
        """What is read to predict a box: the cores that cover it, and the halo around them."""
        covered = zip(box.start, self.cover(box.shape), strict=True)
        return Box(box.start, tuple(start + size for start, size in covered)).grow(self.halo)

    def smaller(self, core: Sizes) -> Sizes | None:
        """The next smaller core: its longest axis halved; None if there is none smaller."""
        steps = [size // step for size, step in zip(core, self.stride, strict=True)]
        if max(steps) == 1:
            return None
        longest = max(range(len(core)), key=lambda axis: (steps[axis] > 1, core[axis]))
        halved = round_up(-(-core[longest] // 2), self.stride[longest])
        return (*core[:longest], halved, *core[longest + 1 :])

    def cores(self, block: Box, core: Sizes) -> Iterator[Box]:
        """Partition a block, rounded up to the stride, into cores of at most the size `core`.

        The last core of an axis shrinks to the lattice point behind the block's end. It never
        moves back: a core off the lattice would see another pooling phase.
        """
        intervals_by_axis = []
        for start, length, size in zip(block.start, self.cover(block.shape), core, strict=True):
            stop = start + length
            intervals_by_axis.append([(a, min(a + size, stop)) for a in range(start, stop, size)])
        for intervals in product(*intervals_by_axis):
            yield Box(tuple(a for a, _ in intervals), tuple(b for _, b in intervals))

    def core_sizes(self, grid: BlockGrid, core: Sizes) -> list[Counter[int]]:
        """For each axis, how often each size of core occurs in an image, without listing cores."""
        counters = []
        for size, block, inner, step in zip(grid.shape, grid.block, core, self.stride, strict=True):
            whole, rest = divmod(size, block)
            counts: Counter[int] = Counter()
            for blocks, covered in ((whole, block), (1, round_up(rest, step))):
                counts[inner] += blocks * (covered // inner)
                counts[covered % inner] += blocks * (covered % inner > 0)
            counters.append(+counts)
        return counters
