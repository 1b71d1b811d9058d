"""The one implementation of `Source`: pixels in a file's own axes, shown as (t, c, z, y, x).

Why one class for every format: the order of axes, the choice of channels and levels and the checks
of dtype and size must not differ between a slide and a stack. A format only implements
`FilePixels`, in its own axes, and says what it found; everything 5D is here.

File axes are letters of "tczyxs", one a dimension: "s" is the samples of a pixel (RGB), and "-" is
a dimension of length 1 that means nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.axes import ORDER, Sizes
from unet.planning.geometry import Box, runs
from unet.sources.base import InPlace, SourceSpec

logger = logging.getLogger(__name__)

FILE_ORDER = "tcszyx"  # c before s: channel k of a file with both is (k // samples, k % samples)
UNUSED = "-"
SAMPLE_NAMES = {
    2: ("gray", "alpha"),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "alpha"),
}


class FilePixels(Protocol):
    """What a format implements: any box of its pixels, in the file's own axes, from any thread.

    shape   of the chosen level
    dtype   as `read` returns it
    chunks  of the pieces that the file can decode alone; 1 where any pixel can be read alone
    """

    shape: Sizes
    dtype: np.dtype
    chunks: Sizes

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """The pixels at `where`, one slice of known start and stop a dimension."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


@dataclass(frozen=True)
class RawImage:
    """What a format found behind a path.

    pixels         of the level that the spec asks for
    axes           the file axes, one letter a dimension of `pixels`
    pixel_size     of that level, micrometres by axis, the spec's sizes over the file's
    channel_names  as the file says them, one a channel or none
    zarr           (store, array in it) of a Zarr image; None for other formats
    origin         where the first pixel lies by axis, in pixels; none for 0
    """

    pixels: FilePixels
    axes: str
    pixel_size: dict[str, float]
    channel_names: tuple[str, ...] = ()
    zarr: tuple[str, str] | None = None
    origin: dict[str, float] = field(default_factory=dict)


class Image:
    """An open image of any format; see `Source`."""

    def __init__(self, spec: SourceSpec, found: RawImage) -> None:
        pixels = found.pixels
        check_axes(spec.path, found.axes, pixels.shape)
        check_dtype(spec.path, pixels.dtype)
        if 0 in pixels.shape:
            raise SourceError(
                f"{spec.path} holds no pixels: its shape is {pixels.shape}. It was probably never "
                "written completely; write it again."
            )
        self._pixels = pixels
        self._sizes = dict(zip(found.axes, pixels.shape, strict=True))
        self._samples = self._sizes.get("s", 1)
        names = _all_names(found.channel_names, self._sizes)
        self._wanted = _choose_channels(spec, names)
        # without a "c", samples are channels that lie last
        self._axes = found.axes if "c" in found.axes else found.axes.replace("s", "c")
        if "c" not in found.axes:
            self._samples = 1
        self._chunk = dict(zip(self._axes, pixels.chunks, strict=True))
        self._runs = runs([k // self._samples for k in self._wanted], self._chunk.get("c", 1))
        self._order = self._positions()

        self.axes = "".join(a for a in ORDER if a in self._axes)
        sizes = dict(zip(self._axes, pixels.shape, strict=True)) | {"c": len(self._wanted)}
        self.shape: Sizes = tuple(sizes.get(a, 1) for a in ORDER)
        self.dtype = pixels.dtype
        self._chunk["c"] = min(self._chunk.get("c", 1) * self._chunk.get("s", 1), sizes["c"])
        self.chunks: Sizes = tuple(self._chunk.get(a, 1) for a in ORDER)
        self.pixel_size = {a: s for a, s in found.pixel_size.items() if a in self.axes}
        self.origin = {a: start for a, start in found.origin.items() if a in self.axes}
        self.channel_names = tuple(names[k] for k in self._wanted)
        self.in_place = self._in_place(found.zarr)

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), inside the image, as (t, c, z, y, x)."""
        inside = (self.shape[0], *self.shape[2:])
        if any(
            not 0 <= a < b <= size for a, b, size in zip(box.start, box.stop, inside, strict=True)
        ):
            raise ValueError(f"{box} is empty or not inside an image of {inside} (t, z, y, x)")
        parts = [self._read_run(box, first, last) for first, last in self._runs]
        image = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if self._order != list(range(image.shape[1])):
            image = image[:, self._order]
        return np.ascontiguousarray(image)

    def close(self) -> None:
        """Close the files; a closed source is not read again."""
        self._pixels.close()

    def _read_run(self, box: Box, first: int, last: int) -> NDArray[np.generic]:
        """The box in the file channels first..last, all samples of each, as (t, c, z, y, x)."""
        where = dict(zip("tzyx", box.slices, strict=True))
        where |= {"c": slice(first, last), "s": slice(0, self._samples), UNUSED: slice(0, 1)}
        image = self._pixels.read(tuple(where[a] for a in self._axes))
        unused = tuple(i for i, a in enumerate(self._axes) if a == UNUSED)
        image = image.squeeze(axis=unused)
        axes = self._axes.replace(UNUSED, "")
        image = image.transpose([axes.index(a) for a in FILE_ORDER if a in axes])
        t, z, y, x = box.shape
        return image.reshape(t, (last - first) * self._samples, z, y, x)

    def _positions(self) -> list[int]:
        """Where each channel asked for lies among the channels that the runs read."""
        read = [c for first, last in self._runs for c in range(first, last)]
        samples = self._samples
        return [read.index(k // samples) * samples + k % samples for k in self._wanted]

    def _in_place(self, zarr: tuple[str, str] | None) -> InPlace | None:
        """Where the image lies, if it is Zarr whose dimensions are ours."""
        if zarr is None or "s" in self._axes or UNUSED in self._axes:
            return None
        return InPlace(zarr[0], zarr[1], self._axes, self._wanted)


def check_axes(path: str, axes: str, shape: Sizes) -> None:
    """Refuse axes that do not name each dimension once, or name no plane."""
    named = axes.replace(UNUSED, "")
    if len(axes) != len(shape):
        raise SourceError(
            f"{path}: axes {axes!r} name {len(axes)} dimensions, but the image has {len(shape)} "
            f"{shape}. Set axes in the configuration to one letter a dimension, such as 'zyx'."
        )
    if any(a == UNUSED and n != 1 for a, n in zip(axes, shape, strict=True)) or (
        set(named) - set(FILE_ORDER) or len(set(named)) != len(named) or not set("yx") <= set(named)
    ):
        raise SourceError(
            f"{path}: axes {axes!r} are not understood for shape {shape}: expected each of "
            "t, c, z, y, x, s at most once, and y and x among them. Set axes in the configuration."
        )


def check_dtype(path: str, dtype: np.dtype) -> None:
    """Refuse what is not a number a network can take."""
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise SourceError(
            f"{path} holds {dtype} values; expected booleans, integers or floats of at most "
            "64 bits. Convert the image, for example to its magnitude in float32."
        )


def stated_axes(spec: SourceSpec, shape: Sizes, known: str | None = None) -> str:
    """The axes of an array: as the spec says, else as the file says, else "yx" if it has two."""
    axes = spec.axes or known or ("yx" if len(shape) == 2 else None)
    if axes is None:
        raise SourceError(
            f"{spec.path} has {len(shape)} dimensions {shape} and does not say which is which. Set "
            "axes in the configuration to one letter a dimension, such as 'zyx' or 'tyx'."
        )
    check_axes(spec.path, axes, shape)
    return axes


def choose_level(
    spec: SourceSpec, base: dict[str, float], factors: Sequence[dict[str, float]]
) -> tuple[int, dict[str, float]]:
    """The level that the spec asks for, and its pixel size in micrometres by axis.

    base     pixel size of level 0 as the file says it; the spec's goes over it
    factors  of each level, by axis: how many pixels of level 0 one of its pixels spans
    """
    base = {a: s for a, s in (base | (spec.pixel_size or {})).items() if s > 0 and math.isfinite(s)}
    if spec.level is not None and spec.level_pixel_size is not None:
        raise SourceError(
            f"{spec.path}: level and level_pixel_size are both set, and only one can choose the "
            "level. Remove one of them from the configuration."
        )
    if spec.level_pixel_size is not None:
        level = _nearest_level(spec, spec.level_pixel_size, base, factors)
    else:
        level = spec.level or 0
    if not 0 <= level < len(factors):
        raise SourceError(
            f"{spec.path} has no level {level}: it has {len(factors)}, counted from 0, the largest."
            " Choose one of these, or level_pixel_size."
        )
    return level, {a: size * factors[level].get(a, 1.0) for a, size in base.items()}


def level_factor(full: int, reduced: int) -> float:
    """How many pixels of `full` one of `reduced` spans: whole where rounding explains the rest."""
    ratio = full / max(reduced, 1)
    for whole in (2 ** round(math.log2(ratio)), round(ratio)) if ratio >= 1 else ():
        if reduced in (full // whole, -(-full // whole)):
            return float(whole)
    return ratio


def _nearest_level(
    spec: SourceSpec, wanted: float, base: dict[str, float], factors: Sequence[dict[str, float]]
) -> int:
    if "x" not in base:
        raise SourceError(
            f"{spec.path} does not say how large its pixels are, so no level can be chosen by "
            f"level_pixel_size {wanted}. Set pixel_size (of level 0) or level in the configuration."
        )
    sizes = [base["x"] * factor.get("x", 1.0) for factor in factors]
    level = min(range(len(sizes)), key=lambda i: abs(sizes[i] - wanted))
    if not wanted / 2 <= sizes[level] <= wanted * 2:
        logger.warning(
            "%s has no level near %g micrometres a pixel; level %d with %g is used.",
            spec.path, wanted, level, sizes[level],
        )  # fmt: skip
    return level


def _all_names(given: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """One name a channel of the file: the file's, the colours of samples, or "channel 0"."""
    samples = sizes.get("s", 1)
    count = sizes.get("c", 1) * samples
    colours = SAMPLE_NAMES.get(samples, tuple(f"sample {i}" for i in range(samples)))
    if len(given) == count:
        return tuple(name.strip() or f"channel {i}" for i, name in enumerate(given))
    if samples == count > 1:
        return colours
    groups = given if len(given) * samples == count else ()
    groups = groups or tuple(f"channel {i}" for i in range(count // samples))
    return groups if samples == 1 else tuple(f"{g} {c}" for g in groups for c in colours)


def _choose_channels(spec: SourceSpec, names: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the channels asked for; the same one may be asked for more than once."""
    if spec.channels is None:
        return tuple(range(len(names)))
    if not spec.channels:
        raise SourceError(f"{spec.path}: channels is empty. Name at least one, or leave it out.")
    return tuple(_channel(spec.path, wanted, names) for wanted in spec.channels)


def _channel(path: str, wanted: int | str, names: tuple[str, ...]) -> int:
    if isinstance(wanted, int):
        found = [wanted] if 0 <= wanted < len(names) else []
    else:
        found = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    problem = f"{len(found)} channels called" if found else "no channel"
    raise SourceError(
        f"{path} has {problem} {wanted!r}; its channels are {listed}. Set channels in the "
        "configuration to indices counted from 0, or to these names."
    )
