"""What is predicted again to check a run: other blocks and other windows, in integers.

The blocks of the check partition the image too. They are shifted by half a block, so that each
straddles the faces of the blocks of the run, and their windows have another core. A mistake in
reading, tiling or writing that shows at a border of the run lies inside a window of the check.

      run      |        0        |        1        |   2   |
      check    |   0    |        1        |        2       |
"""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np

from unet.planning.axes import Sizes
from unet.planning.geometry import Box, round_up
from unet.planning.plan import Plan

EDGE_BLOCKS = 2  # at each end of an axis


def shifted_box(index: int, plan: Plan) -> Box:
    """The pixels of block number `index` of the check."""
    position = np.unravel_index(index, shifted_grid(plan))
    intervals = [_interval(axis, int(step), plan) for axis, step in enumerate(position)]
    return Box(tuple(a for a, _ in intervals), tuple(b for _, b in intervals))


def shifted_grid(plan: Plan) -> Sizes:
    """How many blocks the check has on each axis."""
    counts = []
    for size, block, half in zip(plan.image.shape, plan.block, _shift(plan), strict=True):
        counts.append((half > 0) + max(0, -(-(size - half) // block)))
    return tuple(counts)


def other_core(plan: Plan) -> Sizes:
    """The core of the check's windows: a smaller one; where there is none, a larger."""
    smaller = plan.lattice.smaller(plan.core)
    if smaller is not None:
        return smaller
    return (*plan.core[:-1], 2 * plan.core[-1])


def sample_blocks(plan: Plan, blocks: int, seed: int) -> list[int]:
    """The blocks to predict again: one half where seams would be worst, the others at random.

    Worst are those across most faces of the run's blocks, at borders of the image, and on blocks
    that the image does not fill.
    """
    grid = shifted_grid(plan)
    total = math.prod(grid)
    if blocks >= total:
        return list(range(total))
    near_ends = product(*map(_near_ends, grid))
    worst = sorted(near_ends, key=lambda position: (-_badness(position, plan), position))
    sample = [int(np.ravel_multi_index(each, grid)) for each in worst[: (blocks + 1) // 2]]
    draw = random.Random(seed)  # noqa: S311 - a sample, no secret
    while len(sample) < blocks:
        index = draw.randrange(total)
        if index not in sample:
            sample.append(index)
    return sample


def _shift(plan: Plan) -> Sizes:
    """Half a block on the lattice; 0 where a block is one pixel long."""
    return tuple(
        min(round_up(block // 2, step), block - step) if block > step else 0
        for block, step in zip(plan.block, plan.lattice.stride, strict=True)
    )


def _interval(axis: int, step: int, plan: Plan) -> tuple[int, int]:
    """First and last + 1 pixel of the check's block number `step` on an axis."""
    half, block, size = _shift(plan)[axis], plan.block[axis], plan.image.shape[axis]
    if half == 0:
        return step * block, min((step + 1) * block, size)
    start = half + (step - 1) * block if step else 0
    return start, min(half + step * block, size)


def _near_ends(count: int) -> list[int]:
    return sorted({*range(min(EDGE_BLOCKS, count)), *range(max(0, count - EDGE_BLOCKS), count)})


def _badness(position: Sizes, plan: Plan) -> int:
    bad = 0
    for axis, step in enumerate(position):
        start, stop = _interval(axis, step, plan)
        block, size = plan.block[axis], plan.image.shape[axis]
        if (stop - 1) // block > start // block:
            bad += 2
        bad += (start == 0) + (stop == size) + (stop > size // block * block)
    return bad
