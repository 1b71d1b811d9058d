"""The one implementation of `Source`: pixels in the axes of a file, read as (t, c, z, y, x).

Why one class for every format: the order of axes, the choice of channels, and the checks of dtype
and size must not differ between a slide and a stack. A format only implements `FilePixels`, in its
own axes, and returns a `RawImage`; everything that is 5D is here.

File axes are letters of "tczyxs", one per dimension: "s" is the samples of a pixel (RGB), and "-"
is a dimension of length 1 without a meaning. A file with "s" but no "c" has its samples as
channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet.errors import AxesError, SourceError
from unet.planning.axes import ORDER, Sizes
from unet.planning.channel_selection import ChannelSelection
from unet.planning.geometry import Box
from unet.sources.base import InPlace, SourceSpec

FILE_ORDER = "tcszyx"  # c before s: channel k of a file with both is (k // samples, k % samples)
UNUSED = "-"
LARGEST_PIECE = 1 << 30  # bytes that are decoded at once
MOST_CHANNELS = 10_000
MOST_PIXELS = 1 << 50
SAMPLE_NAMES = {
    2: ("gray", "alpha"),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "alpha"),
}


class FilePixels(Protocol):
    """The pixels of a file, in its own axes; any box of them can be read from any thread.

    shape   of the chosen level
    dtype   as `read` returns it
    chunks  shape of the pieces that can be decoded alone; 1 where any pixel can be read alone
    """

    shape: Sizes
    dtype: np.dtype
    chunks: Sizes

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """The pixels at `where`: one slice per dimension, with start and stop."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


@dataclass(frozen=True)
class RawImage:
    """An image as its format has it.

    pixels         of the level that the spec selects
    axes           the file axes, one letter per dimension of `pixels`
    pixel_size     of that level, micrometres by axis; those of the spec replace those of the file
    channel_names  in the file, one per channel; or none
    zarr           (store, path of the array in it) of a Zarr image; None for other formats
    origin         position of the first pixel by axis, in pixels; 0 where an axis is not in it
    """

    pixels: FilePixels
    axes: str
    pixel_size: dict[str, float]
    channel_names: tuple[str, ...] = ()
    zarr: tuple[str, str] | None = None
    origin: dict[str, float] = field(default_factory=dict)


class Image:
    """An open image of any format; see `Source`."""

    def __init__(self, spec: SourceSpec, raw: RawImage) -> None:
        pixels = raw.pixels
        check_axes(spec.path, raw.axes, pixels.shape)
        check_dtype(spec.path, pixels.dtype)
        check_shape(spec.path, raw.axes, pixels.shape, pixels.chunks)
        names = _channel_names(raw.channel_names, dict(zip(raw.axes, pixels.shape, strict=True)))
        axes = raw.axes if "c" in raw.axes else raw.axes.replace("s", "c")
        sizes = dict(zip(axes, pixels.shape, strict=True))
        chunks = dict(zip(axes, pixels.chunks, strict=True))
        self._pixels, self._file_axes = pixels, axes
        self._selection = ChannelSelection.of(
            _choose_channels(spec, names), samples=sizes.get("s", 1), chunk=chunks.get("c", 1)
        )
        channels = self._selection.channels
        channel_chunk = min(chunks.get("c", 1) * chunks.get("s", 1), len(channels))
        self.axes = "".join(a for a in ORDER if a in axes)
        self.shape = _in_order(sizes | {"c": len(channels)})
        self.dtype = pixels.dtype
        self.chunks = _in_order(chunks | {"c": channel_chunk})
        self.pixel_size = {a: s for a, s in raw.pixel_size.items() if a in self.axes}
        self.origin = {a: start for a, start in raw.origin.items() if a in self.axes}
        self.channel_names = tuple(names[k] for k in channels)
        self.in_place = _in_place(raw.zarr, axes, channels)

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), inside the image, as (t, c, z, y, x)."""
        inside = (self.shape[0], *self.shape[2:])
        if any(
            not 0 <= a < b <= size for a, b, size in zip(box.start, box.stop, inside, strict=True)
        ):
            raise ValueError(f"{box} is empty or not inside an image of {inside} (t, z, y, x)")
        parts = [self._read_channels(box, start, stop) for start, stop in self._selection.reads]
        image = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if not self._selection.is_all_in_order:
            image = image[:, list(self._selection.positions)]
        return np.ascontiguousarray(image)

    def close(self) -> None:
        """Close the files; a closed source is not read again."""
        self._pixels.close()

    def _read_channels(self, box: Box, start: int, stop: int) -> NDArray[np.generic]:
        """The box at indices start..stop of axis c, with all samples, as (t, c, z, y, x)."""
        samples = self._selection.samples
        slices = dict(zip("tzyx", box.slices, strict=True))
        slices |= {"c": slice(start, stop), "s": slice(0, samples), UNUSED: slice(0, 1)}
        image = self._pixels.read(tuple(slices[a] for a in self._file_axes))
        unused = tuple(i for i, a in enumerate(self._file_axes) if a == UNUSED)
        image = image.squeeze(axis=unused)
        axes = self._file_axes.replace(UNUSED, "")
        image = image.transpose([axes.index(a) for a in FILE_ORDER if a in axes])
        t, z, y, x = box.shape
        return image.reshape(t, (stop - start) * samples, z, y, x)


def _in_order(sizes: dict[str, int]) -> Sizes:
    """Sizes by axis as (t, c, z, y, x); 1 for an axis that is not there."""
    return tuple(sizes.get(axis, 1) for axis in ORDER)


def _in_place(zarr: tuple[str, str] | None, axes: str, channels: Sizes) -> InPlace | None:
    """Where the image lies, if it is Zarr and has no axes but t, c, z, y and x."""
    if zarr is None or "s" in axes or UNUSED in axes:
        return None
    return InPlace(zarr[0], zarr[1], axes, channels)


def check_axes(path: str, axes: str, shape: Sizes) -> None:
    """Raise SourceError for axes that do not name each dimension once, or do not name y and x."""
    letters = axes.replace(UNUSED, "")
    if len(axes) != len(shape):
        raise AxesError(
            f"{path}: axes {axes!r} name {len(axes)} dimensions, but the image has {len(shape)} "
            f"{shape}. Set axes in the configuration to one letter per dimension, such as 'zyx'."
        )
    if any(a == UNUSED and n != 1 for a, n in zip(axes, shape, strict=True)) or (
        set(letters) - set(FILE_ORDER)
        or len(set(letters)) != len(letters)
        or not set("yx") <= set(letters)
    ):
        raise AxesError(
            f"{path}: axes {axes!r} are not understood for shape {shape}: expected each of "
            "t, c, z, y, x, s at most once, and y and x among them. Set axes in the configuration."
        )


def check_shape(path: str, axes: str, shape: Sizes, chunks: Sizes) -> None:
    """Raise SourceError for an image or pieces without pixels, and for sizes that no image has."""
    if not all(isinstance(size, int | np.integer) for size in (*shape, *chunks)) or min(chunks) < 1:
        raise SourceError(
            f"{path} says to have shape {shape} and to be stored in pieces of {chunks}, which are "
            "no sizes. Its metadata are damaged; copy or write it again."
        )
    if min(shape) < 1:
        raise SourceError(
            f"{path} holds no pixels: its shape is {shape}. It was probably never "
            "written completely; write it again."
        )
    channels = math.prod(n for axis, n in zip(axes, shape, strict=True) if axis in "cs")
    if channels > MOST_CHANNELS or math.prod(shape) > MOST_PIXELS:
        raise SourceError(
            f"{path} has shape {shape} on the axes {axes!r}, and more than {MOST_CHANNELS:,} "
            f"channels or {MOST_PIXELS:.3g} pixels are not read. Its metadata are damaged, "
            "or axes in the configuration name another dimension as c or s."
        )


def refuse_large(path: str, size: int) -> None:
    """Raise SourceError for more bytes than are read or decoded at once."""
    if size > LARGEST_PIECE:
        raise SourceError(
            f"Expected {path} to be stored in pieces that can be read alone, but its smallest is "
            f"{size / 1e9:.1f} GB once decoded. Convert it to a tiled TIFF or to OME-Zarr."
        )


def check_dtype(path: str, dtype: np.dtype) -> None:
    """Raise SourceError for values that a network cannot take."""
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise SourceError(
            f"{path} holds {dtype} values; expected booleans, integers or floats of at most "
            "64 bits. Convert the image, for example to its magnitude in float32."
        )


def choose_axes(spec: SourceSpec, shape: Sizes, file_axes: str | None = None) -> str:
    """The axes of an array: those of the spec, else those of the file, else "yx" if it has two."""
    axes = spec.axes or file_axes or ("yx" if len(shape) == 2 else None)
    if axes is None:
        raise AxesError(
            f"{spec.path} has {len(shape)} dimensions {shape} and does not say which is which. Set "
            "axes in the configuration to one letter per dimension, such as 'zyx' or 'tyx'."
        )
    check_axes(spec.path, axes, shape)
    return axes


def _channel_names(names: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """One name per channel: of the file, or of a colour such as "red", or "channel 0".

    names  in the file: one per channel, one per index of axis c, or none
    sizes  by file axis
    """
    samples = sizes.get("s", 1)
    count = sizes.get("c", 1) * samples
    colours = SAMPLE_NAMES.get(samples, tuple(f"sample {i}" for i in range(samples)))
    if len(names) == count:
        return tuple(name.strip() or f"channel {i}" for i, name in enumerate(names))
    if samples == count > 1:
        return colours
    groups = names if len(names) * samples == count else ()
    groups = groups or tuple(f"channel {i}" for i in range(count // samples))
    return groups if samples == 1 else tuple(f"{g} {c}" for g in groups for c in colours)


def _choose_channels(spec: SourceSpec, names: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the channels that the spec selects; all if it selects none."""
    if spec.channels is None:
        return tuple(range(len(names)))
    if not spec.channels:
        raise SourceError(f"{spec.path}: channels is empty. Name at least one, or leave it out.")
    return tuple(_find_channel(spec.path, channel, names) for channel in spec.channels)


def _find_channel(path: str, channel: int | str, names: tuple[str, ...]) -> int:
    if isinstance(channel, int):
        matches = [channel] if 0 <= channel < len(names) else []
    else:
        matches = [i for i, name in enumerate(names) if name.casefold() == channel.casefold()]
    if len(matches) == 1:
        return matches[0]
    list_of_names = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    problem = f"{len(matches)} channels called" if matches else "no channel"
    raise SourceError(
        f"{path} has {problem} {channel!r}; its channels are {list_of_names}. Set channels in the "
        "configuration to indices counted from 0, or to these names."
    )
