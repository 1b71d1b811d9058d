"""How large blocks and windows are, and how many windows run at once.

Larger windows repeat less of their neighbours' work. What they gain falls as fast as what they
hold grows: cores of 2048 save 6 % of the operations of cores of 1024, for four times the memory.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product

from unet.errors import PlanError
from unet.model.architecture import Architecture
from unet.planning.axes import GRID, Sizes
from unet.planning.geometry import grow_block, round_up
from unet.planning.lattice import Lattice
from unet.planning.layout import BLOCK_PIXELS
from unet.planning.memory import NetworkMemory
from unet.planning.options import SplitOptions

BATCH_PIXELS = 1 << 20  # small windows share a forward pass up to this many pixels
LEAST_GAIN = 0.1  # a core is halved while that adds less than this share of the operations
CHUNK_SIDE = {2: 1024, 3: 64}  # by the network's dimensions; smaller costs time, and saves none


@dataclass(frozen=True)
class WindowChoice:
    """The largest core of a window, (t, z, y, x), and how many windows run at once."""

    core: Sizes
    batch: int


def choose_block(shape: Sizes, lattice: Lattice, options: SplitOptions) -> tuple[Sizes, Sizes]:
    """The block and the chunk of an image: as asked, or about BLOCK_PIXELS.

    Both are multiples of the stride, and the block is one of the chunk. Raises PlanError otherwise.
    """
    side = CHUNK_SIDE[lattice.dims]
    default = lattice.cover(tuple(map(min, lattice.one_pass((side,) * len(GRID)), shape)))
    chunk = _multiple(options.chunk, "chunk", default, lattice.stride)
    if options.shard is not None:
        return _multiple(options.shard, "shard", chunk, chunk), chunk
    return grow_block(chunk, shape, lattice.dims, BLOCK_PIXELS), chunk


def choose_windows(
    lattice: Lattice, reach: Sizes, memory: NetworkMemory, options: SplitOptions
) -> WindowChoice:
    """The largest windows, and of small ones the most, that fit the memory.

    reach  (t, z, y, x) of a block, or of the image where that is smaller

    Raises PlanError where none fits, or the core that was asked for does not.
    """
    reach = lattice.cover(reach)
    if options.core is None:
        core = _largest_core(lattice, reach, memory, options.memory)
    else:
        core = _requested_core(options.core, reach, lattice)
    one = memory.window_bytes(core)
    window = memory.architecture.window(lattice.spatial(core))
    fitting = (options.memory - memory.fixed) // one
    batch = max(1, min(BATCH_PIXELS // math.prod(window), fitting))
    if (needed := memory.worker_bytes(core, batch)) > options.memory:
        raise PlanError(
            f"Expected a worker to need at most the {options.memory / 1e9:.3g} GB of `memory`, "
            f"but with cores of {core} it needs {needed / 1e9:.3g} GB. Give it more memory, or "
            f"choose a smaller `core`."
        )
    return WindowChoice(core, batch)


def count_flop(architecture: Architecture, core_sizes: list[Counter[int]]) -> int:
    """Floating-point operations of all windows of an image.

    core_sizes  how often each size of core occurs on each axis, see `Lattice.core_sizes`
    """
    unseen, seen = core_sizes[: -architecture.dims], core_sizes[-architecture.dims :]
    planes = math.prod(sum(axis.values()) for axis in unseen)
    return planes * sum(
        math.prod(times for _, times in combination)
        * architecture.flop(architecture.window([size for size, _ in combination]))
        for combination in product(*(axis.items() for axis in seen))
    )


def _largest_core(lattice: Lattice, reach: Sizes, memory: NetworkMemory, limit: int) -> Sizes:
    """The largest core that is worth its memory and fits it: `reach`, halved as often as needed."""
    core = _worthwhile_core(memory.architecture, lattice, lattice.one_pass(reach))
    while (needed := memory.worker_bytes(core, 1)) > limit:
        smaller = lattice.smaller(core)
        if smaller is None:
            raise PlanError(
                f"Expected a worker to need at most the {limit / 1e9:.3g} GB of `memory`, but even "
                f"the smallest window makes it need {needed / 1e9:.3g} GB. Give it more memory, "
                f"or choose smaller shards (`shard`)."
            )
        core = smaller
    return core


def _worthwhile_core(architecture: Architecture, lattice: Lattice, core: Sizes) -> Sizes:
    """The core, halved while it is larger than a batch and that adds few operations."""

    def flop_per_pixel(core: Sizes) -> float:
        return architecture.flop(architecture.window(lattice.spatial(core))) / math.prod(core)

    bound = (1 + LEAST_GAIN) * flop_per_pixel(core)
    while math.prod(core) > BATCH_PIXELS and (smaller := lattice.smaller(core)):
        if flop_per_pixel(smaller) > bound:
            break
        core = smaller
    return core


def _requested_core(request: Sizes, reach: Sizes, lattice: Lattice) -> Sizes:
    """The core that was asked for, no larger than a block. Raises PlanError where it cannot be."""
    core = _multiple(request, "window core", lattice.stride, lattice.stride)
    if any(side > 1 for side in lattice.unseen(core)):
        raise PlanError(
            f"Expected the window core {request} to be 1 on each axis but the last {lattice.dims}: "
            f"the network of {lattice.dims} dimensions sees no other axes, and they are done one "
            f"index at a time. Leave them out."
        )
    return tuple(map(min, core, reach))


def _multiple(request: Sizes | None, name: str, default: Sizes, step: Sizes) -> Sizes:
    """The sizes that were asked for, of the last axes, and `default` of the others."""
    if request is None:
        return default
    unnamed = len(GRID) - len(request)
    sizes = default[:unnamed] + request
    if any(size < 1 or size != round_up(size, s) for size, s in zip(sizes, step, strict=True)):
        raise PlanError(
            f"Expected the {name} {request} to be a multiple of {step[unnamed:]} on each axis, "
            f"so that everything lies on the network's lattice. Choose the next one."
        )
    return sizes
