"""From pixels to probabilities: the network on windows, and on a whole image at once.

A window goes to the device in the image's own dtype, is normalised there, passes through the
network, and only the probabilities of its core come back. `predict` is the untiled reference: one
window over the whole image. The tiled pipeline uses the same `Inference` on many windows, and must
give equal numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unet.errors import DeviceError, ModelError, excerpt
from unet.model.classify import with_background
from unet.model.folder import ModelSpec, find_model
from unet.model.normalisation import summarise
from unet.network.unet import CHANNELS_LAST, UNet
from unet.network.weights import load_network
from unet.planning.axes import GRID, ORDER, Sizes, with_channels, without_channels
from unet.planning.geometry import BlockGrid, Box, read_mirrored
from unet.planning.lattice import Lattice

log = logging.getLogger(__name__)

STRIP = 1 << 16  # values that a CPU's cache holds
MOST_SAMPLES = 4  # of a pixel, such as red, green, blue and alpha

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Inference:
    """A network on a device, ready for windows.

    network  (B, C, [Z,] Y, X) -> logits of its valid output
    dims     2 or 3, the network's spatial axes
    device   such as "cpu" or "cuda:0"
    precision  "float32", or "bfloat16" for weights and activations (the softmax stays float32)
    """

    def __init__(
        self,
        network: nn.Module,
        dims: int,
        offset: Iterable[float],
        scale: Iterable[float],
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        if precision == "float32":
            # Else a GPU rounds to 10 bits of mantissa, and picks algorithms by a window's size.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark = False
        self._layout = CHANNELS_LAST[dims]
        self._dims = dims
        self._device = torch.device(device)
        self._dtype = DTYPES[precision]
        self._network = network.to(device=self._device, dtype=self._dtype).eval()
        per_channel = (1, -1, *(1,) * dims)
        self._offset = torch.tensor(list(offset), device=self._device).reshape(per_channel)
        self._scale = torch.tensor(list(scale), device=self._device).reshape(per_channel)

    @torch.inference_mode()
    def probabilities(self, windows: list[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Foreground probabilities of windows (t, c, z, y, x), all of one shape.

        For a 2D network z is 1. Returns (windows, classes - 1, [Z,] Y, X): the valid output.
        """
        x = torch.stack([self._tensor(window) for window in windows])  # (B, C, [Z,] Y, X)
        x = x.to(self._device).to(torch.float32)
        x = x.sub_(self._offset).mul_(self._scale)
        x = x.to(self._dtype).contiguous(memory_format=self._layout)
        logits = self._network(x).to(torch.float32)  #                   (B, K, [Z',] Y', X')
        if logits.is_cpu:
            return foreground(logits.numpy())
        result: NDArray[np.float32] = torch.softmax(logits, dim=1)[:, 1:].cpu().numpy()
        return result

    def _tensor(self, window: NDArray[np.generic]) -> Tensor:
        unseen = (window.shape[0], window.shape[2])[: 4 - self._dims]
        if unseen != (1,) * len(unseen):
            raise ValueError(f"a window {window.shape} of more planes than the network sees")
        plane = window[0, :, 0] if self._dims == 2 else window[0]
        if plane.dtype.byteorder not in "=|" or plane.dtype.kind not in "iuf":
            plane = plane.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(plane))


def crop_core(output: NDArray[np.float32], core: Sizes, size: Sizes) -> NDArray[np.float32]:
    """Of a window's output (classes - 1, [Z,] Y, X) its core, and of that what is in the image.

    core, size  their shapes on (t, z, y, x). Returns (1, classes - 1, z, y, x).
    """
    spatial = output.shape[1:]
    starts = [(n - c) // 2 for n, c in zip(spatial, core[-len(spatial) :], strict=True)]
    index = [slice(a, a + k) for a, k in zip(starts, size[-len(spatial) :], strict=True)]
    return output[(slice(None), *index)].reshape(1, output.shape[0], *size[1:])


def foreground(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The softmax of logits (B, K, ...) without its first class: (B, K - 1, ...).

    Why not torch's: on a CPU it computes the values at the end of each thread's share by another
    exponential, so that a pixel's last bit would depend on where in its window it lies.
    """
    result = np.empty((logits.shape[0], logits.shape[1] - 1, *logits.shape[2:]), np.float32)
    rows = max(1, STRIP // math.prod(logits.shape[3:]))
    for image, out in zip(logits, result, strict=True):
        for start in range(0, image.shape[1], rows):
            _softmax(image[:, start : start + rows], out[:, start : start + rows])
    return result


def _softmax(logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """The softmax of logits (K, ...) without its first class, into `out` (K - 1, ...)."""
    if len(logits) == 2:  # the sigmoid of their difference: half of the work
        odds = np.subtract(logits[:1], logits[1:], out=out)
        with np.errstate(over="ignore"):  # infinite odds are a probability of 0
            np.exp(odds, out=odds)
        odds += 1
        np.reciprocal(odds, out=out)
        return
    per_class = np.array(logits, order="C")
    per_class -= per_class.max(axis=0)
    np.exp(per_class, out=per_class)
    total = per_class[0].copy()
    for values in per_class[1:]:
        total += values
    np.divide(per_class[1:], total, out=out)


class WindowRunner:
    """Runs the windows of a block, in batches, and shrinks them where the device is too small.

    core   (t, z, y, x) of the largest core of a window
    batch  how many windows run at once
    """

    def __init__(
        self, inference: Inference, lattice: Lattice, core: Sizes, batch: int, classes: int
    ) -> None:
        self._inference, self._lattice = inference, lattice
        self._core, self._batch = core, batch
        self._classes = classes

    def block(self, pixels: NDArray[np.generic], box: Box) -> NDArray[np.float32]:
        """Probabilities of `box`, as (t, classes - 1, z, y, x), from its pixels and their halo.

        pixels  (t, c, z, y, x) of `Lattice.reads(box)`

        Raises DeviceError where no window fits the device.
        """
        while True:
            try:
                return self._block(pixels, box)
            except torch.OutOfMemoryError as error:
                smaller = self._lattice.smaller(self._core)
                if smaller is None:
                    raise DeviceError(
                        f"Expected the device to hold a window around a core of {self._core}, the "
                        f"smallest there is, but it is out of memory: {error}. Use a device with "
                        f"more memory, or free what other programs hold on it."
                    ) from error
                log.warning("out of memory: cores shrink from %s to %s", self._core, smaller)
                self._core, self._batch = smaller, 1
                torch.cuda.empty_cache()

    def _block(self, pixels: NDArray[np.generic], box: Box) -> NDArray[np.float32]:
        out = np.empty(with_channels(box.shape, self._classes - 1), np.float32)
        halo = self._lattice.halo
        origin = box.grow(halo).start
        for batch in self._batches(box):
            windows = [pixels[_index(core.grow(halo).relative_to(origin))] for core in batch]
            for core, output in zip(batch, self._inference.probabilities(windows), strict=True):
                inside = core.clip(box.stop)
                values = crop_core(output, core.shape, inside.shape)
                out[_index(inside.relative_to(box.start))] = values
        return out

    def _batches(self, box: Box) -> Iterator[list[Box]]:
        """The cores of a box, up to `batch` of one shape together."""
        by_shape: dict[Sizes, list[Box]] = {}
        for core in self._lattice.cores(box, self._core):
            group = by_shape.setdefault(core.shape, [])
            group.append(core)
            if len(group) == self._batch:
                yield by_shape.pop(core.shape)
        yield from by_shape.values()


@dataclass(frozen=True)
class Model:
    """A model that is loaded: what it is, and its network."""

    spec: ModelSpec
    network: UNet


def load_model(name_or_path: str | Path) -> Model:
    """Load a shipped model, by name, or any model folder, by path.

    Raises ModelError where the folder or its weights are missing, damaged or contradictory, and
    TypeError for what is neither a name nor a path.
    """
    if not isinstance(name_or_path, str | Path):
        raise TypeError(
            f"Expected a model's name or the path of its folder, got {_kind(name_or_path)}. Write "
            f"for instance unet.load_model('fluo-nuclei')."
        )
    spec = find_model(name_or_path)
    return Model(spec, load_network(spec))


def predict(
    model: Model, image: NDArray[np.generic], axes: str | None = None
) -> NDArray[np.float32]:
    """Probabilities of an image in memory, each plane or volume in one window; for notebooks.

    This is the reference that the tiled workflow must equal.

    image  (Y, X), (C, Y, X), (Z, Y, X) or (C, Z, Y, X), by the model's channels and dimensions,
           or (Y, X, C) where only that fits; name any other order by `axes`, such as "tzyx"
    Returns (classes, [T,] [Z,] Y, X) float32; the classes of a pixel sum to 1.
    Raises ModelError where the image does not fit the model, or may be read in two ways,
    SourceError for NaN, and TypeError for a name or a path in the place of a model or an image.
    """
    _refuse_kinds(model, image)
    architecture = model.spec.architecture
    axes = axes or guess_axes(image.shape, model.spec)
    pixels = _five_axes(image, axes)  #                            (T, C, Z, Y, X)
    if pixels.shape[1] != architecture.in_channels or pixels.size == 0:
        raise _no_fit(image.shape, f" read as {axes!r}", model.spec)
    normalisation = model.spec.normalisation
    channels = np.moveaxis(pixels, 1, 0)
    affine = normalisation.affine(summarise(channels, normalisation.percentiles))
    inference = Inference(model.network, architecture.dims, *affine)
    lattice = Lattice.of(architecture)
    shape = without_channels(pixels.shape)
    probabilities = np.empty(with_channels(shape, architecture.classes - 1), np.float32)
    passes = BlockGrid(shape, lattice.one_pass(shape))
    for number in range(passes.count):
        box = passes.box(number)
        window = read_mirrored(lambda b: pixels[_index(b)], lattice.reads(box), shape)
        (output,) = inference.probabilities([window])
        core = lattice.cover(box.shape)
        probabilities[_index(box)] = crop_core(output, core, box.shape)
    result = np.moveaxis(with_background(probabilities), 1, 0)
    return result.reshape([-1, *(image.shape[axes.index(a)] for a in GRID if a in axes)])


def _refuse_kinds(model: object, image: object) -> None:
    """Raise TypeError, with what to write, for a name, a path or another library's array."""
    if not isinstance(model, Model):
        raise TypeError(
            f"Expected a model that unet.load_model returns, got {_kind(model)}. Write for "
            f"instance unet.predict(unet.load_model('fluo-nuclei'), image)."
        )
    if isinstance(image, str | Path):
        raise TypeError(
            f"Expected the pixels of an image, got {_kind(image)}. Read the file first, for "
            f"instance by tifffile.imread(path), or let the workflow read it."
        )
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"Expected the pixels of an image as a NumPy array, got {_kind(image)}. Convert them "
            f"by numpy.asarray(image)."
        )
    if image.dtype.kind not in "buif":
        raise TypeError(
            f"Expected the pixels of an image to be booleans, integers or floats, got "
            f"{image.dtype} values. Convert them, for instance by image.astype('float32')."
        )


def _kind(value: object) -> str:
    kind = type(value).__name__
    return f"the {kind} {excerpt(repr(value))}" if isinstance(value, str | Path) else f"a {kind}"


def guess_axes(shape: Sizes, spec: ModelSpec) -> str:
    """The axes that a shape must have. Raises ModelError where two readings or none are left.

    Why a short last axis is asked for: colours that are read as pixels of many narrow planes end in
    a mask that looks like nothing, and in no error.
    """
    rank, dims, channels = len(shape), spec.architecture.dims, spec.architecture.in_channels
    readings = []
    if rank == dims + 1 and shape[0] == channels:
        readings.append("c" + "zyx"[-dims:])
    elif channels == 1 and rank in (dims, 3):
        readings.append("zyx"[-rank:])
    if (rank == dims + 1 and shape[-1] == channels > 1) or (
        channels == 1 and rank in (3, 4) and shape[-1] <= MOST_SAMPLES
    ):
        readings.append("zyxc"[-rank:])
    if len(readings) > 1:
        raise ModelError(
            f"Expected to know the axes of an image of shape {shape}, which may be "
            f"{' or '.join(map(repr, readings))}, where c is channels, such as colours. Name its "
            f"axes, for instance axes={readings[0]!r}. {_advice_on_channels(spec)}"
        )
    if not readings:
        raise _no_fit(shape, "", spec)
    return readings[0]


def _no_fit(shape: Sizes, reading: str, spec: ModelSpec) -> ModelError:
    return ModelError(
        f"Expected an image that fits the model {spec.name}, got the shape {shape}{reading}. Name "
        f"the axes, for instance axes='yxc'. {_advice_on_channels(spec)}"
    )


def _advice_on_channels(spec: ModelSpec) -> str:
    count = spec.architecture.in_channels
    plural, chosen = ("", "0") if count == 1 else ("s", f":{count}")
    return (
        f"The model takes {count} channel{plural} ({', '.join(spec.channels)}): leave out the "
        f"others, for instance image[..., {chosen}] where the last axis is channels."
    )


def _five_axes(image: NDArray[np.generic], axes: str) -> NDArray[np.generic]:
    if len(axes) != image.ndim or len(set(axes)) < len(axes) or not set(axes) <= set(ORDER):
        raise ModelError(
            f"Expected one axis letter of {ORDER!r} for each dimension of the image, got {axes!r} "
            f"for the shape {image.shape}. Name the axes, for instance axes='yxc'."
        )
    ordered = image.transpose([axes.index(axis) for axis in ORDER if axis in axes])
    lengths = iter(ordered.shape)
    return ordered.reshape([next(lengths) if axis in axes else 1 for axis in ORDER])


def _index(box: Box) -> tuple[slice, ...]:
    """What cuts a box on (t, z, y, x) out of an array (t, c, z, y, x)."""
    t, *rest = box.slices
    return (t, slice(None), *rest)
