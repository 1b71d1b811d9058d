"""Zarr arrays (v2, v3) and OME-Zarr images (0.4, 0.5), which are read where they lie.

An OME-Zarr group says all that has to be known: axes, levels, pixel sizes, channel names. A plain
array says its axes only in Zarr v3, by `dimension_names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore

from unet.errors import SourceError
from unet.planning.axes import Sizes
from unet.sources.base import SourceSpec
from unet.sources.image import RawImage, choose_level, stated_axes
from unet.sources.units import micrometres
from unet.storage.location import locate
from unet.storage.server import translate_errors

# what zarr raises for missing or damaged metadata and chunks, and for unknown codecs
DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError)
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
        with translate_errors(self._path):
            try:
                return np.asarray(self._array[where], dtype=self.dtype)
            except DAMAGED as error:
                raise SourceError(
                    f"{self._path}: array {self._array.path!r} cannot be read at {where} "
                    f"({error}). A chunk is damaged or was cut short; copy the image again."
                ) from error

    def close(self) -> None:
        """Zarr opens chunks one by one and keeps none open."""


def find_zarr(spec: SourceSpec) -> RawImage:
    """The array, or the level of the OME-Zarr image, that `spec` asks for."""
    node = _open(spec.path)
    if isinstance(node, zarr.Array):
        pixels = ZarrPixels(spec.path, node)
        _, pixel_size = choose_level(spec, {}, [{}])
        axes = stated_axes(spec, pixels.shape, _dimension_names(node))
        return RawImage(pixels, axes, pixel_size, zarr=(spec.path, ""))
    group, prefix = _image_group(spec.path, node)
    return _find_level(spec, group, prefix)


def _find_level(spec: SourceSpec, group: zarr.Group, prefix: str) -> RawImage:
    metadata = _ome(group)
    image = metadata["multiscales"][0]
    try:
        described = [_axis(a) for a in image.get("axes", "tczyx")]
        placed = [_placed(image, dataset, len(described)) for dataset in image["datasets"]]
        names = tuple(
            str(c.get("label", "")) for c in metadata.get("omero", {}).get("channels", [])
        )
        paths = [str(dataset["path"]) for dataset in image["datasets"]]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{spec.path}: its OME-Zarr metadata (multiscales) are not as the format says "
            f"({error!r}). Write the image again, or set the path to one of its arrays."
        ) from error
    letters = "".join(name for name, _ in described)
    base, factors = _sizes(described, [scale for scale, _ in placed])
    level, pixel_size = choose_level(spec, base, factors)
    node = _open(spec.path, prefix + paths[level])
    if not isinstance(node, zarr.Array):
        raise SourceError(
            f"{spec.path}: {prefix + paths[level]!r}, which its metadata name as level {level}, is "
            "a group and no array. The image was not written completely; write it again."
        )
    pixels = ZarrPixels(spec.path, node)
    axes = stated_axes(spec, pixels.shape, letters)
    where = (spec.path, prefix + paths[level])
    origin = {
        axis: start / size
        for axis, size, start in zip(letters, *placed[level], strict=True)
        if axis in SPACE and start and size > 0
    }
    return RawImage(pixels, axes, pixel_size, names, where, origin)


def _open(path: str, inside: str = "") -> zarr.Array[Any] | zarr.Group:
    where = locate(path)
    store = where if isinstance(where, Path) else ObjectStore(where.objects())
    with translate_errors(where):
        try:
            return zarr.open(store, path=inside, mode="r")
        except DAMAGED as error:
            raise SourceError(
                f"{path}: Zarr cannot open {repr(inside) if inside else 'the image'} ({error}). "
                "Its metadata are missing or damaged, or it uses a codec that is not installed; "
                "copy or write it again."
            ) from error


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    """The OME metadata: under "ome" since 0.5, before that the attributes themselves."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


def _image_group(path: str, group: zarr.Group) -> tuple[zarr.Group, str]:
    """The group with multiscales and its path in the store: the group itself, or its "0".

    bioformats2raw writes the images of a file as groups "0", "1", ...; the first is the slide, and
    another is read by giving the path of its own group.
    """
    metadata = _ome(group)
    if metadata.get("multiscales"):
        return group, ""
    if "bioformats2raw.layout" in metadata:
        inner = _open(path, "0")
        if isinstance(inner, zarr.Group) and _ome(inner).get("multiscales"):
            return inner, "0/"
    what = "a plate of images" if "plate" in metadata else "a Zarr group without multiscales"
    raise SourceError(
        f"{path} is {what}, not one image; expected an array or an OME-Zarr image. It contains "
        f"{', '.join(sorted(group.keys())[:20]) or 'nothing'}: set the path to the image in it."
    )


def _axis(axis: object) -> tuple[str, float | None]:
    """Letter of an OME-Zarr axis, and micrometres in its unit; before 0.4 axes are letters."""
    if isinstance(axis, Mapping):
        return str(axis["name"]).lower(), micrometres(axis.get("unit"))
    return str(axis).lower(), None


def _placed(
    image: Mapping[str, Any], dataset: Mapping[str, Any], ndim: int
) -> tuple[list[float], list[float]]:
    """The scale and the translation of a level, after those that hold for all levels."""
    total, shift = [1.0] * ndim, [0.0] * ndim
    for part in (dataset, image):
        for transformation in part.get("coordinateTransformations", []):
            if transformation["type"] == "scale":
                scale = [float(s) for s in transformation["scale"]]
                total = [a * b for a, b in zip(total, scale, strict=True)]
                shift = [a * b for a, b in zip(shift, scale, strict=True)]
            elif transformation["type"] == "translation":
                moved = [float(s) for s in transformation["translation"]]
                shift = [a + b for a, b in zip(shift, moved, strict=True)]
    return total, shift


def _sizes(
    described: Sequence[tuple[str, float | None]], scales: Sequence[list[float]]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Pixel size of level 0 where a unit is given, and each level's factors over level 0."""
    base, factors = {}, [dict[str, float]() for _ in scales]
    for i, (name, unit) in enumerate(described):
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
