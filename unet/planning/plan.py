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
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product

import numpy as np

from unet.errors import PlanError
from unet.model.architecture import FLOAT32_BYTES, Architecture
from unet.model.folder import ModelSpec
from unet.planning.axes import GRID, ORDER
from unet.planning.geometry import (
    Box,
    Halo,
    Sizes,
    block_box,
    core_sizes,
    grid,
    grow_block,
    round_up,
)
from unet.planning.layout import BLOCK_PIXELS, Layout, with_channels
from unet.storage.location import locate
from unet.storage.manifest import fingerprint

BATCH_PIXELS = 1 << 20  # small windows share a forward pass up to this many pixels
PROCESS_BYTES = 300_000_000  # of a worker that has imported torch, and holds nothing yet
HEAP = 2  # a heap that is used again and again holds up to twice what is alive: 1.8 was measured
COPIES = 4  # of a block that is moved: as stored, decoded, in another order; 3 to 4 were measured
END_BYTES = 12  # of an input or output value: as it is stored, in float32, and as computed with
FEWER_OPERATIONS = 0.1  # by less than this share of them no larger windows are worth their memory
RESULTS = 1  # counted up when a change of this project changes the probabilities
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # between kinds of processors
BLOCKS_PER_WORKER = 3  # one is read, one computed, one written


@dataclass(frozen=True)
class ImageRef:
    """Where an image's pixels lie, and what they are; sizes are (t, z, y, x).

    copied  whether ingest made the store; else it is the user's own and only read
    block   (t, z, y, x) of the shards of a copy
    axes    of the array, in its own order; `channels` of it are used, None for all
    span    the smallest and the largest value
    shown   of each channel, the values that a viewer shows as black and as white
    digest  names the pixels: equal images have equal digests
    identity  of an image that is not copied, names its files as they were when it was ingested
    origin  where its first pixel lies by axis, in pixels; none for 0
    """

    store: str
    copied: bool
    array: str
    axes: str
    channels: tuple[int, ...] | None
    shape: Sizes
    dtype: str
    channel_names: tuple[str, ...]
    pixel_size: dict[str, float]
    span: tuple[float, float] = (0.0, 0.0)
    shown: tuple[tuple[float, float], ...] = ()
    digest: str = ""
    identity: str = ""
    block: Sizes = ()
    origin: dict[str, float] = field(default_factory=dict)

    def absolute(self) -> ImageRef:
        """With a path that workers find wherever they were started; manifests can be moved."""
        return replace(self, store=str(locate(self.store).absolute()))


@dataclass(frozen=True)
class SplitOptions:
    """What the configuration asks of the plan; None leaves a choice to it.

    shard      y and x, or z, y and x, of a block
    chunk      likewise, of what is compressed together
    core       likewise, the largest core of a window
    memory     bytes that one worker, and one device, may use
    precision  "float32" or "bfloat16"
    tolerance  by how much processors of two kinds may differ in a probability; None: TOLERANCE
    """

    memory: int
    precision: str = "float32"
    shard: Sizes | None = None
    chunk: Sizes | None = None
    core: Sizes | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Plan:
    """How one image is predicted; all sizes are (t, z, y, x).

    model         folder of the model
    model_fingerprint  what was in it
    offset, scale normalisation, one number a channel: (value - offset) * scale
    classes       names of all classes; the probability store has them but the first
    stride, halo  the network's lattice, and what a window reads around its core
    block, chunk  the shards and chunks of the probabilities and of the mask
    core, batch   the largest core of a window, and how many windows run at once
    windows       windows in all
    flop          floating-point operations in all
    memory        bytes that one worker, and one device, may use
    worker_bytes  what a worker will hold: itself, its blocks, the network, and one batch
    device_bytes  what a device will hold: the network and one batch
    slabs         number of jobs; the result does not depend on it
    fingerprint   names everything that the probabilities depend on
    tolerance     by how much a probability may differ on another kind of processor
    output_files  at most so many files in the result: fewer without the image
    output_bytes  of the result's pixels before compression, and
    probabilities_bytes  of the probabilities
    """

    image: ImageRef
    model: str
    model_fingerprint: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    classes: tuple[str, ...]
    precision: str
    stride: Sizes
    halo: Halo
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
    tolerance: float = 0.0
    output_files: int = 0
    output_bytes: int = 0
    probabilities_bytes: int = 0

    def box(self, block: int) -> Box:
        """The pixels of block number `block`."""
        return block_box(block, self.image.shape, self.block)

    def absolute(self) -> Plan:
        """With paths that workers find wherever they were started."""
        return replace(self, image=self.image.absolute())

    def reads(self, block: int) -> Box:
        """What block number `block` reads: itself, rounded up to the lattice, and its halo."""
        box = self.box(block)
        stop = tuple(
            a + round_up(n, s) for a, n, s in zip(box.start, box.shape, self.stride, strict=True)
        )
        return Box(box.start, stop).grow(self.halo)

    @property
    def axes(self) -> str:
        """Axes of the probabilities: those of the image, and the classes as "c"."""
        return "".join(axis for axis in ORDER if axis in self.image.axes or axis == "c")

    def probabilities(self) -> Layout:
        """The array of the foreground probabilities."""
        return self._layout(self.axes, len(self.classes) - 1, "float32")

    def mask(self) -> Layout:
        """The array of the mask: the number of each pixel's class."""
        return self._layout(self.axes.replace("c", ""), 1, "uint8")

    def _layout(self, axes: str, channels: int, dtype: str) -> Layout:
        return Layout(
            axes=axes,
            shape=with_channels(self.image.shape, channels),
            dtype=dtype,
            chunk=with_channels(self.chunk, 1),
            shard=with_channels(self.block, channels),
        )


def lattice(architecture: Architecture) -> tuple[Sizes, Halo]:
    """The stride and halo on (t, z, y, x): axes that the network has not are done one by one."""
    loose = len(GRID) - architecture.dims
    return (1,) * loose + architecture.stride, ((0, 0),) * loose + architecture.halo


def block_shape(
    shape: Sizes, stride: Sizes, request: SplitOptions, dims: int
) -> tuple[Sizes, Sizes]:
    """The block and the chunk of an image: as asked, or about BLOCK_PIXELS of it.

    Both are multiples of the stride, and the block of the chunk. Raises PlanError otherwise.
    """
    chunk = _on_grid(request.chunk, "chunk", _default_chunk(shape, stride, dims), stride)
    if request.shard is not None:
        block = _on_grid(request.shard, "shard", chunk, chunk)
        return block, chunk
    return grow_block(chunk, shape, dims, BLOCK_PIXELS), chunk


def choose_core(
    architecture: Architecture, block: Sizes, shape: Sizes, fixed: int, request: SplitOptions
) -> Sizes:
    """The largest core worth its memory that fits it: the block, halved as often as needed.

    Larger windows repeat less of the work of their neighbours, but what they gain falls as fast as
    what they hold grows: 2048 saves 6 % of the operations of 1024, for four times the memory.

    fixed  bytes a worker holds beside the window's activations
    Raises PlanError where even the smallest window does not fit.
    """
    stride, _ = lattice(architecture)
    reach = tuple(round_up(min(b, n), s) for b, n, s in zip(block, shape, stride, strict=True))
    loose = len(GRID) - architecture.dims
    if request.core is not None:
        return _asked_core(request.core, reach, stride, architecture.dims)
    core = _no_larger_than_pays(architecture, (1,) * loose + reach[loose:], stride)
    while fixed + activation_bytes(architecture, core, request.precision) > request.memory:
        smaller = shrink(core, stride)
        if smaller is None:
            least = fixed + activation_bytes(architecture, core, request.precision)
            raise PlanError(
                f"Expected a worker to need at most the {request.memory / 1e9:.3g} GB of "
                f"`memory`, but even the smallest window makes it need {least / 1e9:.3g} GB. Give "
                f"it more memory, or choose smaller shards (`shard`)."
            )
        core = smaller
    return core


def _asked_core(asked: Sizes, reach: Sizes, stride: Sizes, dims: int) -> Sizes:
    """The core that was asked for, no larger than a block. Raises PlanError where it cannot be."""
    core = _on_grid(asked, "window core", stride, stride)
    if any(side > 1 for side in core[: len(GRID) - dims]):
        raise PlanError(
            f"Expected the window core {asked} to be 1 on each axis but the last {dims}, since the "
            f"network of {dims} dimensions sees no other; the others are done one by one. Leave "
            f"them out."
        )
    return tuple(min(c, r) for c, r in zip(core, reach, strict=True))


def _no_larger_than_pays(architecture: Architecture, core: Sizes, stride: Sizes) -> Sizes:
    """The core, halved while it is larger than a batch and few operations are added by it."""
    bound = (1 + FEWER_OPERATIONS) * _flop_per_pixel(architecture, core)
    while math.prod(core) > BATCH_PIXELS and (smaller := shrink(core, stride)):
        if _flop_per_pixel(architecture, smaller) > bound:
            break
        core = smaller
    return core


def _flop_per_pixel(architecture: Architecture, core: Sizes) -> float:
    window = architecture.window(core[len(GRID) - architecture.dims :])
    return architecture.flop(window) / math.prod(core)


def shrink(core: Sizes, stride: Sizes) -> Sizes | None:
    """The next smaller core: the longest axis halved on the lattice; None if none is smaller."""
    steps = [c // s for c, s in zip(core, stride, strict=True)]
    if max(steps) == 1:
        return None
    longest = max(range(len(core)), key=lambda axis: (steps[axis] > 1, core[axis]))
    halved = round_up(-(-core[longest] // 2), stride[longest])
    return (*core[:longest], halved, *core[longest + 1 :])


def activation_bytes(architecture: Architecture, core: Sizes, precision: str) -> int:
    """Bytes that the activations of one window around this core take."""
    window = architecture.window(core[len(GRID) - architecture.dims :])
    peak = HEAP * architecture.peak_bytes(window)
    ends = architecture.in_channels * math.prod(window) + architecture.classes * math.prod(core)
    return (peak // 2 if precision == "bfloat16" else peak) + END_BYTES * ends


@dataclass(frozen=True)
class Load:
    """What a worker runs at once and what that takes, named as in `Plan`."""

    core: Sizes
    batch: int
    worker_bytes: int
    device_bytes: int


def fit(image: ImageRef, model: ModelSpec, block: Sizes, request: SplitOptions) -> Load:
    """The largest windows, and of small ones the most, that fit the memory.

    Raises PlanError where none does, or the core that was asked for does not.
    """
    architecture = model.architecture
    _, halo = lattice(architecture)
    read = Box((0,) * 4, block).grow(halo).shape
    held = COPIES * math.prod(read) * len(image.channel_names) * np.dtype(image.dtype).itemsize
    held += 2 * math.prod(block) * (len(model.classes) - 1) * FLOAT32_BYTES
    parameters = 2 * architecture.parameters * FLOAT32_BYTES  # as read, and as computed with
    fixed = PROCESS_BYTES + BLOCKS_PER_WORKER * held + parameters
    core = choose_core(architecture, block, image.shape, fixed, request)
    one = activation_bytes(architecture, core, request.precision)
    window = architecture.window(core[len(GRID) - architecture.dims :])
    batch = max(1, min(BATCH_PIXELS // math.prod(window), (request.memory - fixed) // one))
    needed = fixed + batch * one
    if needed > request.memory:
        raise PlanError(
            f"Expected a worker to need at most the {request.memory / 1e9:.3g} GB of `memory`, but "
            f"with cores of {core} it needs {needed / 1e9:.3g} GB. Give it more memory, or choose "
            f"a smaller `core`."
        )
    return Load(core, batch, needed, parameters + batch * one)


def make_plan(
    image: ImageRef,
    model: ModelSpec,
    affine: tuple[tuple[float, ...], tuple[float, ...]],
    request: SplitOptions,
    slabs: int,
) -> Plan:
    """Decide everything for one image. Raises PlanError where it does not fit or contradicts.

    affine  offsets and scales of the channels, by the model's normalisation of the whole image
    """
    architecture = model.architecture
    stride, halo = lattice(architecture)
    block, chunk = block_shape(image.shape, stride, request, architecture.dims)
    load = fit(image, model, block, request)
    sizes = core_sizes(image.shape, block, load.core, stride)
    return Plan(
        image=image,
        model=str(model.folder),
        model_fingerprint=model.fingerprint,
        offset=affine[0],
        scale=affine[1],
        classes=model.classes,
        precision=request.precision,
        stride=stride,
        halo=halo,
        block=block,
        chunk=chunk,
        core=load.core,
        batch=load.batch,
        blocks=math.prod(grid(image.shape, block)),
        windows=math.prod(sum(axis.values()) for axis in sizes),
        flop=_flop(architecture, sizes),
        memory=request.memory,
        worker_bytes=load.worker_bytes,
        device_bytes=load.device_bytes,
        slabs=slabs,
        fingerprint=fingerprint(
            *(image.digest, image.axes, image.shape, model.fingerprint, affine, request.precision),
            *(block, chunk, RESULTS, version("torch")),
        ),
        tolerance=TOLERANCE[request.precision] if request.tolerance is None else request.tolerance,
    )


def _flop(architecture: Architecture, sizes: list[Counter[int]]) -> int:
    """Operations of all windows, from how often each core size occurs on each axis."""
    loose = len(GRID) - architecture.dims
    planes = math.prod(sum(axis.values()) for axis in sizes[:loose])
    return planes * sum(
        math.prod(times for _, times in combined)
        * architecture.flop(architecture.window([size for size, _ in combined]))
        for combined in product(*(axis.items() for axis in sizes[loose:]))
    )


def _default_chunk(shape: Sizes, stride: Sizes, dims: int) -> Sizes:
    side = 1024 if dims == 2 else 64  # smaller ones cost Zarr more time than they save
    wanted = (1, 1 if dims == 2 else side, side, side)
    return tuple(round_up(min(w, n), s) for w, n, s in zip(wanted, shape, stride, strict=True))


def _on_grid(asked: Sizes | None, name: str, default: Sizes, step: Sizes) -> Sizes:
    if asked is None:
        return default
    sizes = default[: len(GRID) - len(asked)] + asked
    if any(size % s or size < 1 for size, s in zip(sizes, step, strict=True)):
        wanted = step[len(GRID) - len(asked) :]
        raise PlanError(
            f"Expected the {name} {asked} to be a multiple of {wanted} on each axis, so that "
            f"everything lies on the network's lattice. Choose the next multiple."
        )
    return sizes
