"""Zarr arrays (v2, v3) and OME-Zarr images (0.4, 0.5), which are read without a copy.

An OME-Zarr group has axes, levels, pixel sizes and channel names. A plain array has the names of
its axes only in Zarr v3, as `dimension_names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unet.errors import SourceError, excerpt
from unet.planning.axes import Sizes
from unet.sources.base import SourceSpec
from unet.sources.image import RawImage, choose_axes
from unet.sources.levels import choose_level, only_level
from unet.sources.units import micrometres
from unet.storage.foreign_zarr import DAMAGED, open_foreign
from unet.storage.location import locate
from unet.storage.server import translate_errors

SPACE = "zyx"


class ZarrPixels:
    """One Zarr array; missing chunks are its fill value, as the format says."""

    def __init__(self, path: str, array: zarr.Array[Any]) -> None:
        self._path, self._array = path, array
        self.shape: Sizes = array.shape
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.chunks: Sizes = array.chunks

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """The pixels at `where`."""
        with translate_errors(self._path), np.errstate(over="ignore"):  # of a damaged shard's index
            try:
                return np.asarray(self._array[where], dtype=self.dtype)
            except DAMAGED as error:
                raise SourceError(
                    f"{self._path}: array {self._array.path!r} cannot be read at {where} "
                    f"({error}). A chunk is damaged or was cut short; copy the image again."
                ) from error

    def close(self) -> None:
        """Nothing to close: Zarr opens chunk by chunk and keeps no file open."""


def open_zarr(spec: SourceSpec) -> RawImage:
    """The array, or the level of the OME-Zarr image, that `spec` selects."""
    node = open_foreign(locate(spec.path))
    if isinstance(node, zarr.Array):
        pixels = ZarrPixels(spec.path, node)
        axes = choose_axes(spec, pixels.shape, _dimension_names(node))
        return RawImage(pixels, axes, only_level(spec), zarr=(spec.path, ""))
    group, prefix = _image_group(spec.path, node)
    return _open_level(spec, group, prefix)


def _open_level(spec: SourceSpec, group: zarr.Group, prefix: str) -> RawImage:
    metadata = _ome(group)
    try:
        image = metadata["multiscales"][0]
        described_axes = [_axis(a) for a in image.get("axes", "tczyx")]
        transforms = [
            _transform(image, dataset, len(described_axes)) for dataset in image["datasets"]
        ]
        names = tuple(
            str(c.get("label", "")) for c in metadata.get("omero", {}).get("channels", [])
        )
        paths = [str(dataset["path"]) for dataset in image["datasets"]]
        letters = "".join(name for name, _ in described_axes)
        base, factors = _sizes(described_axes, [scale for scale, _ in transforms])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{spec.path}: its OME-Zarr metadata (multiscales) are not as the format says "
            f"({excerpt(repr(error))}). Write it again, or set the path to one of its arrays."
        ) from error
    level, pixel_size = choose_level(spec, base, factors)
    node = open_foreign(locate(spec.path), prefix + paths[level])
    if not isinstance(node, zarr.Array):
        raise SourceError(
            f"{spec.path}: {prefix + paths[level]!r}, which its metadata name as level {level}, is "
            "a group and no array. The image was not written completely; write it again."
        )
    pixels = ZarrPixels(spec.path, node)
    axes = choose_axes(spec, pixels.shape, letters)
    array = (spec.path, prefix + paths[level])
    origin = {
        axis: start / size
        for axis, size, start in zip(letters, *transforms[level], strict=True)
        if axis in SPACE and start and size > 0
    }
    return RawImage(pixels, axes, pixel_size, names, array, origin)


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    """The OME metadata: under "ome" since 0.5, before that the attributes themselves."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


def _image_group(path: str, group: zarr.Group) -> tuple[zarr.Group, str]:
    """The group with multiscales and its path in the store: the group itself, or its "0".

    bioformats2raw writes the images of a file as groups "0", "1", ... The first is the slide; to
    read another one, the path has to name its group.
    """
    metadata = _ome(group)
    if metadata.get("multiscales"):
        return group, ""
    if "bioformats2raw.layout" in metadata:
        inner = open_foreign(locate(path), "0")
        if isinstance(inner, zarr.Group) and _ome(inner).get("multiscales"):
            return inner, "0/"
    what = "a plate of images" if "plate" in metadata else "a Zarr group without multiscales"
    raise SourceError(
        f"{path} is {what}, not one image; expected an array or an OME-Zarr image. "
        f"{_contents(path)}: set the path to the image in it."
    )


def _contents(path: str) -> str:
    """What lies in a local group, for a message; Zarr would open each of them to tell."""
    location = locate(path)
    if not isinstance(location, Path):
        return "It may contain some"
    names = sorted(folder.name for folder in location.iterdir() if folder.is_dir())
    return f"It contains {', '.join(names[:20]) or 'nothing'}"


def _axis(axis: object) -> tuple[str, float | None]:
    """The letter of an OME-Zarr axis, and micrometres in its unit; no unit before 0.4."""
    if isinstance(axis, Mapping):
        return str(axis["name"]).lower(), micrometres(axis.get("unit"))
    return str(axis).lower(), None


def _transform(
    image: Mapping[str, Any], dataset: Mapping[str, Any], ndim: int
) -> tuple[list[float], list[float]]:
    """The scale and the translation of a level, combined with those of all levels."""
    total, shift = [1.0] * ndim, [0.0] * ndim
    for part in (dataset, image):
        for transformation in part.get("coordinateTransformations", []):
            if transformation["type"] == "scale":
                scale = [float(s) for s in transformation["scale"]]
                total = [a * b for a, b in zip(total, scale, strict=True)]
                shift = [a * b for a, b in zip(shift, scale, strict=True)]
            elif transformation["type"] == "translation":
                translation = [float(s) for s in transformation["translation"]]
                shift = [a + b for a, b in zip(shift, translation, strict=True)]
    return total, shift


def _sizes(
    described_axes: Sequence[tuple[str, float | None]], scales: Sequence[list[float]]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Pixel size of level 0 on axes with a unit, and the factors of each level over level 0."""
    base, factors = {}, [dict[str, float]() for _ in scales]
    for i, (name, unit) in enumerate(described_axes):
        if name in SPACE and scales[0][i] > 0:
            if unit is not None:
                base[name] = scales[0][i] * unit
            for factor, scale in zip(factors, scales, strict=True):
                factor[name] = scale[i] / scales[0][i]
    return base, factors


def _dimension_names(array: zarr.Array[Any]) -> str | None:
    """The axes of a Zarr v3 array, if its dimension names are single letters."""
    names = getattr(array.metadata, "dimension_names", None)
    if not names or any(name is None or len(name) != 1 for name in names):
        return None
    return "".join(names).lower()
