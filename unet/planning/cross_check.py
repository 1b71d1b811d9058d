"""What is predicted again to prove a run: other blocks and other windows, in integers.

The blocks of the proof partition the image too, but are shifted by half a block, so that each
straddles the faces of the blocks of the run, and their windows have another core. A mistake in
reading, tiling or writing that shows at a border of the run lies then inside a window of the proof.

      run      |        0        |        1        |   2   |
      proof    |   0    |        1        |        2       |
"""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np

from unet.planning.geometry import Box, Sizes, round_up
from unet.planning.plan import Plan, shrink

EDGE_BLOCKS = 2  # at each end of an axis


def shifted_box(index: int, plan: Plan) -> Box:
    """The pixels of block number `index` of the proof."""
    position = np.unravel_index(index, shifted_grid(plan))
    spans = [_span(axis, int(place), plan) for axis, place in enumerate(position)]
    return Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))


def shifted_grid(plan: Plan) -> Sizes:
    """How many blocks the proof has on each axis."""
    counts = []
    for size, block, half in zip(plan.image.shape, plan.block, _shift(plan), strict=True):
        counts.append((half > 0) + max(0, -(-(size - half) // block)))
    return tuple(counts)


def other_core(plan: Plan) -> Sizes:
    """The core of the proof's windows: a smaller one; where there is none, a larger."""
    smaller = shrink(plan.core, plan.stride)
    if smaller is not None:
        return smaller
    return (*plan.core[:-1], 2 * plan.core[-1])


def chosen(plan: Plan, blocks: int, seed: int) -> list[int]:
    """The blocks to predict again: one half where seams would be worst, the others at random.

    Worst are those across most faces of the run's blocks, at borders of the image, and on blocks
    that the image does not fill.
    """
    grid = shifted_grid(plan)
    total = math.prod(grid)
    if blocks >= total:
        return list(range(total))
    ends = (_ends(count) for count in grid)
    worst = sorted(product(*ends), key=lambda place: (-_badness(place, plan), place))
    picked = [int(np.ravel_multi_index(place, grid)) for place in worst[: (blocks + 1) // 2]]
    draw = random.Random(seed)  # noqa: S311 - a sample, no secret
    while len(picked) < blocks:
        index = draw.randrange(total)
        if index not in picked:
            picked.append(index)
    return picked


def _shift(plan: Plan) -> Sizes:
    """Half a block on the lattice; 0 where a block is one pixel long."""
    return tuple(
        min(round_up(block // 2, step), block - step) if block > step else 0
        for block, step in zip(plan.block, plan.stride, strict=True)
    )


def _span(axis: int, place: int, plan: Plan) -> tuple[int, int]:
    half, block, size = _shift(plan)[axis], plan.block[axis], plan.image.shape[axis]
    if half == 0:
        return place * block, min((place + 1) * block, size)
    start = half + (place - 1) * block if place else 0
    return start, min(half + place * block, size)


def _ends(count: int) -> list[int]:
    return sorted({*range(min(EDGE_BLOCKS, count)), *range(max(0, count - EDGE_BLOCKS), count)})


def _badness(position: Sizes, plan: Plan) -> int:
    bad = 0
    for axis, place in enumerate(position):
        start, stop = _span(axis, place, plan)
        block, size = plan.block[axis], plan.image.shape[axis]
        if (stop - 1) // block > start // block:
            bad += 2
        bad += (start == 0) + (stop == size) + (stop > size // block * block)
    return bad
