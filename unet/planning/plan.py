"""The plan: everything that can be decided before the network runs, in integers.

Why a plan: the stages after it only obey, so one place answers what is read, computed, kept and
written, what it costs, and whether it fits. Its size does not grow with the image: blocks, windows
and cores are counted and computed from their number, never listed.

    image (t, z, y, x)
      blocks    partition the image; a block is one shard of every store, one task, one owner
        cores   partition a block; what a window contributes
          window = core + halo; what the network reads, mirrored at the image's border
    slabs       contiguous ranges of blocks; one Snakemake job each
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version

from unet.fingerprint import fingerprint
from unet.model.folder import ModelSpec
from unet.planning.axes import ORDER, Sizes, with_channels
from unet.planning.geometry import BlockGrid
from unet.planning.image import IngestedImage
from unet.planning.lattice import Lattice
from unet.planning.layout import Layout
from unet.planning.memory import NetworkMemory
from unet.planning.options import SplitOptions
from unet.planning.result_layout import Footprint, footprint
from unet.planning.windows import choose_block, choose_windows, count_flop

RESULTS = 1  # counted up when a change of this project changes the probabilities
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # between kinds of processors


@dataclass(frozen=True)
class Plan:
    """How one image is predicted; all sizes are (t, z, y, x).

    model         folder of the model
    model_fingerprint  names what was in it
    offset, scale  normalisation, one number for each channel: (value - offset) * scale
    classes       names of all classes; the probability store has them but the first
    lattice       where windows may lie, and what a window reads around its core
    block, chunk  the shards and chunks of the probabilities and of the mask
    core, batch   the largest core of a window, and how many windows run at once
    blocks        blocks in all
    windows       windows in all
    flop          floating-point operations in all
    memory        bytes that one worker, and one device, may use
    worker_bytes  what a worker will hold: itself, its blocks, the network, and one batch
    device_bytes  what a device will hold: the network and one batch
    slabs         number of jobs; the result does not depend on it
    fingerprint   names everything that the probabilities depend on
    tolerance     by how much a probability may differ on another kind of processor
    result        what the result takes at most: less where it does not hold the image
    probabilities_bytes  what the probabilities take before they are compressed
    """

    image: IngestedImage
    model: str
    model_fingerprint: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    classes: tuple[str, ...]
    precision: str
    lattice: Lattice
    block: Sizes
    chunk: Sizes
    core: Sizes
    batch: int
    blocks: int
    windows: int
    flop: int
    memory: int
    worker_bytes: int
    device_bytes: int
    slabs: int
    fingerprint: str
    tolerance: float
    result: Footprint
    probabilities_bytes: int

    @property
    def grid(self) -> BlockGrid:
        """The blocks of the image."""
        return BlockGrid(self.image.shape, self.block)

    @property
    def probabilities_layout(self) -> Layout:
        """The array of the foreground probabilities."""
        return probabilities_layout(self.image, self.classes, self.block, self.chunk)

    @property
    def mask_layout(self) -> Layout:
        """The array of the mask: the number of each pixel's class."""
        return mask_layout(self.image, self.block, self.chunk)


def make_plan(
    image: IngestedImage,
    model: ModelSpec,
    affine: tuple[tuple[float, ...], tuple[float, ...]],
    options: SplitOptions,
    slabs: int,
) -> Plan:
    """Decide everything for one image. Raises PlanError where it does not fit or contradicts.

    affine  offsets and scales of the channels, by the model's normalisation of the whole image
    """
    lattice = Lattice.of(model.architecture)
    block, chunk = choose_block(image.shape, lattice, options)
    memory = NetworkMemory.of(image, model, block, options.precision)
    windows = choose_windows(lattice, tuple(map(min, block, image.shape)), memory, options)
    grid = BlockGrid(image.shape, block)
    core_sizes = lattice.core_sizes(grid, windows.core)
    probabilities = probabilities_layout(image, model.classes, block, chunk)
    return Plan(
        image=image,
        model=str(model.folder),
        model_fingerprint=model.fingerprint,
        offset=affine[0],
        scale=affine[1],
        classes=model.classes,
        precision=options.precision,
        lattice=lattice,
        block=block,
        chunk=chunk,
        core=windows.core,
        batch=windows.batch,
        blocks=grid.count,
        windows=math.prod(sum(axis.values()) for axis in core_sizes),
        flop=count_flop(model.architecture, core_sizes),
        memory=options.memory,
        worker_bytes=memory.worker_bytes(windows.core, windows.batch),
        device_bytes=memory.device_bytes(windows.core, windows.batch),
        slabs=slabs,
        fingerprint=fingerprint(
            *(image.digest, image.axes, image.shape, model.fingerprint, affine, options.precision),
            *(block, chunk, RESULTS, version("torch")),
        ),
        tolerance=TOLERANCE[options.precision] if options.tolerance is None else options.tolerance,
        result=footprint(image, mask_layout(image, block, chunk)),
        probabilities_bytes=Footprint.of([probabilities]).bytes,
    )


def probabilities_layout(
    image: IngestedImage, classes: tuple[str, ...], block: Sizes, chunk: Sizes
) -> Layout:
    """The array of the foreground probabilities: of all classes but the first."""
    axes = "".join(axis for axis in ORDER if axis in image.axes or axis == "c")
    return _layout(image, axes, len(classes) - 1, "float32", block, chunk)


def mask_layout(image: IngestedImage, block: Sizes, chunk: Sizes) -> Layout:
    """The array of the mask."""
    axes = "".join(axis for axis in ORDER if axis in image.axes and axis != "c")
    return _layout(image, axes, 1, "uint8", block, chunk)


def _layout(
    image: IngestedImage, axes: str, channels: int, dtype: str, block: Sizes, chunk: Sizes
) -> Layout:
    return Layout(
        axes=axes,
        shape=with_channels(image.shape, channels),
        dtype=dtype,
        chunk=with_channels(chunk, 1),
        shard=with_channels(block, channels),
    )
