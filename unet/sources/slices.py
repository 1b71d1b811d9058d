"""A stack with one file per slice, and single PNG or JPEG images.

Why only the first file is opened at the start: stacks of 10,000 slices are common, and to read one
header takes milliseconds on a network disk. Every other file is checked when it is read, and an
error then names it. A file is closed after each read, so that a worker never has 10,000 open files.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import replace

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from unet.errors import AxesError, SourceError
from unet.planning.axes import Sizes
from unet.sources.base import SourceSpec
from unet.sources.image import UNUSED, RawImage, refuse_large
from unet.sources.levels import only_level
from unet.storage.location import locate

log = logging.getLogger(__name__)

ALONG = {"z": "z planes", "t": "time points", "c": "channels"}
PNG, PNG_SAMPLES = b"\x89PNG", {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}  # of a pixel, by kind of colour
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers before its sizes
MARKER = 0xFF
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
OpenSlice = Callable[[SourceSpec], RawImage]


class RasterPixels:
    """One PNG or JPEG: a single piece, decoded whole. The first read takes what opening decoded."""

    def __init__(self, path: str) -> None:
        self._path = path
        image = self._decode()
        self.shape: Sizes = image.shape
        self.dtype = image.dtype
        self.chunks: Sizes = image.shape
        self._unread: NDArray[np.generic] | None = image

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """The pixels at `where`."""
        image, self._unread = self._unread, None
        return (self._decode() if image is None else image)[where]

    def close(self) -> None:
        """Nothing is open between reads."""
        self._unread = None

    def _decode(self) -> NDArray[np.generic]:
        try:
            location = locate(self._path)
            refuse_large(self._path, location.stat().st_size)
            data = location.read_bytes()
            refuse_large(self._path, _decoded_size(data))
            if data[:4] == PNG:
                return np.asarray(imagecodecs.png_decode(data))
            if data.rfind(JPEG_END) < data.rfind(JPEG_SCAN):
                raise ValueError(
                    "the end of the image is missing"
                )  # the decoder would make up the rest
            return np.asarray(imagecodecs.jpeg_decode(data))
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{self._path} begins like a PNG or JPEG image but cannot be decoded ({error}). It "
                "is probably cut short or damaged; copy it again."
            ) from error


def _decoded_size(data: bytes) -> int:
    """The bytes of all pixels that a PNG or a JPEG says it has."""
    if data[:4] == PNG:
        width, height, bits, colour = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
        return int(width * height * PNG_SAMPLES.get(colour, 4) * max(1, bits // 8))
    at = 2
    while at + 10 <= len(data) and data[at] == MARKER:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in JPEG_FRAMES:
            bits, height, width, samples = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return int(height * width * samples * -(-bits // 8))
        at += 1 if kind == MARKER else 2 + length  # any number of them may stand before a marker
    return 0


class StackPixels:
    """Slices of equal shape and dtype along a first axis of their own."""

    def __init__(self, specs: list[SourceSpec], open_slice: OpenSlice, first: RawImage) -> None:
        self._specs, self._open_slice, self._first = specs, open_slice, first
        self.shape: Sizes = (len(specs), *first.pixels.shape)
        self.dtype = first.pixels.dtype
        self.chunks: Sizes = (1, *first.pixels.chunks)

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """The pixels at `where`, from each slice that it touches."""
        out = np.empty(tuple(s.stop - s.start for s in where), self.dtype)
        for into, index in zip(out, range(where[0].start, where[0].stop), strict=True):
            raw = self._open_slice(self._specs[index])
            try:
                self._check(raw, self._specs[index].path)
                into[...] = raw.pixels.read(where[1:])
            finally:
                raw.pixels.close()
        return out

    def close(self) -> None:
        """Nothing is open between reads."""

    def _check(self, raw: RawImage, path: str) -> None:
        first, other = self._first.pixels, raw.pixels
        if (other.shape, other.dtype) != (self.shape[1:], self.dtype):
            raise SourceError(
                f"{path} has shape {other.shape} and dtype {other.dtype}, but the first slice of "
                f"the stack, {self._specs[0].path}, has {first.shape} and {first.dtype}. Probably "
                "a file that is no slice lies among them; move it away, or name the slices by a "
                "glob."
            )


def open_stack(spec: SourceSpec, files: list[str], open_slice: OpenSlice) -> RawImage:
    """The stack of `files`, along z, or along the first axis of the spec.

    Raises AxesError where the axes name none along the files, or do not fit a file.
    """
    along = spec.axes[0] if spec.axes else "z"
    inner = spec.axes[1:] or None if spec.axes else None
    if along not in ALONG:
        raise AxesError(
            f"{spec.path} is {len(files)} files, which are read as one stack, and its axes "
            f"{spec.axes!r} do not begin with one along the files. Begin with z for planes, t for "
            f"time points or c for channels, such as 'zyx'. Separate images need an entry each in "
            f"`images`: see docs/formats.md."
        )
    specs = [replace(spec, path=path, axes=inner, channels=None) for path in files]
    first = _open_first(spec, specs[0], open_slice)
    first.pixels.close()
    if along in first.axes or (inner is None and set(first.axes) - set("yxs" + UNUSED)):
        raise AxesError(
            f"{files[0]} is the first slice of the stack {spec.path}, and has axes "
            f"{first.axes.replace(UNUSED, '')!r} of its own, so it is no slice along {along!r}. "
            "Set axes in the configuration, the axis along the files first, such as 'tzyx'."
        )
    log.info("%s: %d files are read as %s of one image", spec.path, len(files), ALONG[along])
    names = first.channel_names if along != "c" else ()
    pixels = StackPixels(specs, open_slice, first)
    return RawImage(pixels, along + first.axes, _sizes(spec, first), names)


def _open_first(spec: SourceSpec, first: SourceSpec, open_slice: OpenSlice) -> RawImage:
    try:
        return open_slice(first)
    except AxesError as error:
        if spec.axes is None:
            raise
        raise AxesError(
            f"{spec.path}: of its axes {spec.axes!r} the first is along the files, so "
            f"{first.axes!r} are those of each file, which they do not fit. {error}"
        ) from error


def open_raster(spec: SourceSpec) -> RawImage:
    """A single PNG or JPEG image, whose axes can only be y, x and its samples."""
    pixels = RasterPixels(spec.path)
    axes = "yx" if len(pixels.shape) == 2 else "yxs"
    if spec.axes not in (None, axes, axes.replace("s", "c")):
        raise AxesError(
            f"{spec.path}: axes {spec.axes!r} do not fit a PNG or JPEG image of shape "
            f"{pixels.shape}, whose axes are {axes!r}. Remove axes from the configuration, or put "
            "the axis along the files before these if it is a stack."
        )
    return RawImage(pixels, spec.axes or axes, only_level(spec))


def _sizes(spec: SourceSpec, first: RawImage) -> dict[str, float]:
    """The pixel size of a slice; along the stack it can only come from the spec."""
    axes = {*first.axes, *(spec.pixel_size or {})}
    return {axis: size for axis, size in first.pixel_size.items() if axis in axes}
