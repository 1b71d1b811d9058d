"""Which image of a TIFF file is meant, which of its levels, and what its axes are.

A file may hold several images (tifffile's series): a slide, its label, a thumbnail. The one with
the largest plane is meant.
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import ExitStack
from xml.etree import ElementTree

import tifffile

from unet.errors import AxesError, SourceError, excerpt
from unet.planning.axes import Sizes
from unet.sources.base import SourceSpec
from unet.sources.file import path_or_stream
from unet.sources.image import FILE_ORDER, UNUSED, RawImage
from unet.sources.levels import choose_level, level_factor
from unet.sources.tiff import metadata
from unet.sources.tiff.pixels import DAMAGED, open_level

MOST_PLANES = 10_000_000
SCANNER_KINDS = {"svs", "ndpi", "scn", "qpi"}  # of slides, whose resolution is a scanner's


def open_tiff(spec: SourceSpec) -> RawImage:
    """The level of a TIFF file that `spec` selects. Raises SourceError."""
    with ExitStack() as stack:  # closes the file unless everything succeeds
        try:
            tif = stack.enter_context(tifffile.TiffFile(path_or_stream(spec.path)))
            _refuse_loop(tif)
            _refuse_planes(tif)
            series = tif.series
            if not series:
                raise tifffile.TiffFileError("it holds no image")
            raw = _open_main(spec, tif, series)
        except DAMAGED as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{spec.path} begins like a TIFF file but cannot be read as one "
                f"({excerpt(error)}). It is probably cut short or damaged; copy it again and "
                "compare the sizes."
            ) from error
        stack.pop_all()
    return raw


def _open_main(
    spec: SourceSpec, tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries]
) -> RawImage:
    next_page = _next_page(tif)
    _refuse_appended(spec, series)
    main = max(series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
    _check_series(spec, tif, main, next_page)
    return _open_series(spec, tif, main)


def _refuse_loop(tif: tifffile.TiffFile) -> None:
    """Raise ValueError where a page leads back to an earlier one: that has no end."""
    file, form, offset = tif.filehandle, tif.tiff, tif.pages.first.offset
    seen: set[int] = set()
    while 0 < offset < file.size:
        if offset in seen:
            raise ValueError(f"the page after number {len(seen)} is an earlier one")
        seen.add(offset)
        file.seek(offset)
        start = file.read(form.tagnosize)
        if len(start) < form.tagnosize:
            return
        (tags,) = struct.unpack(form.tagnoformat, start)
        file.seek(tags * form.tagsize, os.SEEK_CUR)
        link = file.read(form.offsetsize)
        if len(link) < form.offsetsize:
            return
        (offset,) = struct.unpack(form.offsetformat, link)


def _refuse_planes(tif: tifffile.TiffFile) -> None:
    """Raise ValueError for OME-XML of more planes than a file has: each gets a place in a list."""
    if not tif.is_ome:
        return
    for element in ElementTree.fromstring(tif.ome_metadata or "").iter():  # noqa: S314
        sizes = [int(element.get(f"Size{axis}", 1)) for axis in "TCZ"]
        if math.prod(max(1, size) for size in sizes) > MOST_PLANES:
            raise ValueError(f"its OME-XML says sizes of {sizes} for T, C and Z")


def _refuse_appended(spec: SourceSpec, series: list[tifffile.TiffPageSeries]) -> None:
    """Raise SourceError for images that were appended one by one: no one knows which is meant."""
    first = series[0]
    if len(series) > 1 and all(s.kind == "shaped" and s.shape == first.shape for s in series):
        raise SourceError(
            f"{spec.path} holds {len(series)} images of shape {first.shape} that were appended "
            "one by one, and does not say that they are one stack. Write them as one array, for "
            "example tifffile.imwrite(path, stack, metadata={'axes': 'ZYX'}), or as a folder of "
            "slices."
        )


def _open_series(
    spec: SourceSpec, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> RawImage:
    base = series.levels[0]
    pixel_size, names = _metadata(tif, series)
    axes, shape = base.get_axes(False).lower(), base.get_shape(False)
    factors = [
        {
            axis: level_factor(full, reduced)
            for axis, full, reduced in zip(axes, shape, level.get_shape(False), strict=True)
            if axis in "zyx"
        }
        for level in series.levels
    ]
    number, pixel_size = choose_level(spec, pixel_size, factors)
    level = series.levels[number]
    axes = _file_axes(spec, level)
    return RawImage(open_level(spec.path, tif, level), axes, pixel_size, names)


def _check_series(
    spec: SourceSpec, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, next_page: int | None
) -> None:
    """Raise SourceError for a file that has lost pages, and for pixels that are not an image."""
    has_page_count = tif.is_ome or tif.is_imagej
    if (
        next_page is None
        or next_page >= tif.filehandle.size
        or (has_page_count and series.kind in ("generic", "uniform"))
    ):
        raise SourceError(
            f"{spec.path} holds fewer pages than it says. It is probably cut short, or one part of "
            "an image of several files: copy or write it again, and compare the sizes."
        )
    if series.keyframe.dtype is None:
        raise SourceError(
            f"{spec.path} holds samples of {series.keyframe.bitspersample} bits in a format that "
            "cannot be read. Convert it to integers or floats of 8, 16 or 32 bits."
        )
    if series.kind == "bif" or series.transform is not None:
        raise SourceError(
            f"{spec.path} is a {series.kind.upper()} file, whose pixels are not an image before "
            "they are stitched or rescaled. Convert it to OME-TIFF with bioformats2raw first."
        )


def _next_page(tif: tifffile.TiffFile) -> int | None:
    """The offset after the last page: 0 in a complete file, None if the file ends before it."""
    size = tif.tiff.offsetsize
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    data = tif.filehandle.read(size)
    return int(struct.unpack(tif.tiff.offsetformat, data)[0]) if len(data) == size else None


def _metadata(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size of level 0 and channel names, as the program that wrote the file has them."""
    keyframe = series.keyframe
    tag_sizes = metadata.from_resolution(
        keyframe.resolution, int(keyframe.resolutionunit), series.kind in SCANNER_KINDS
    )
    if tif.is_ome and series.kind != "imagej":
        xml = tifffile.xml2dict(tif.ome_metadata or "", sep="")
        return metadata.from_ome(xml, tif.series.index(series))
    if series.kind == "imagej":
        shape = dict(zip(series.get_axes(False), series.get_shape(False), strict=True))
        return metadata.from_imagej(
            tif.imagej_metadata or {}, keyframe.resolution, shape.get("C", 1)
        )
    if series.kind == "svs":
        return metadata.from_aperio(keyframe.description) or tag_sizes, ()
    if series.kind == "qpi":
        pages = [page for page in series if isinstance(page, tifffile.TiffPage)]
        return tag_sizes, metadata.qptiff_names([page.description for page in pages])
    return tag_sizes, ()


def _file_axes(spec: SourceSpec, level: tifffile.TiffPageSeries) -> str:
    """One letter for each dimension of the level, those of length 1 included.

    The axes of the spec may name all dimensions, or leave out those of length 1.
    """
    shape, letters = level.get_shape(False), level.get_axes(False)
    short = "".join(
        a.lower() if n > 1 or a in "YX" else UNUSED for a, n in zip(letters, shape, strict=True)
    )
    if spec.axes is None:
        unknown = [a for a in short if a not in "tczyxs" + UNUSED]
        if unknown:
            raise _unknown_axes(spec.path, level.get_axes(True).lower(), level.get_shape(True))
        return short
    # The spec may leave out no dimension, those of length 1 but y and x, or all of length 1.
    for pattern in (short, letters, "".join(UNUSED if n == 1 else "k" for n in shape)):
        if len(pattern.replace(UNUSED, "")) == len(spec.axes):
            spec_axes = iter(spec.axes)
            axes = "".join(a if a == UNUSED else next(spec_axes) for a in pattern)
            _check_planes(spec, axes, letters, level.get_shape(True))
            return axes
    raise AxesError(
        f"{spec.path}: axes {spec.axes!r} name {len(spec.axes)} dimensions, but the image has "
        f"{len(level.get_shape(True))}, of shape {level.get_shape(True)}. Set axes in the "
        "configuration to one letter for each of these, in this order."
    )


def _unknown_axes(path: str, axes: str, shape: Sizes) -> AxesError:
    """Why not in tifffile's letters: Q or I means nothing to who has the image.

    axes  of tifffile, small, of the dimensions longer than 1; letters of other meaning are unknown
    """
    lengths = [n for axis, n in zip(axes, shape, strict=True) if axis not in FILE_ORDER]
    free = [axis for axis in "ztc" if axis not in axes][: len(lengths)]
    letters = iter(sorted(free, key=FILE_ORDER.index))
    example = "".join(axis if axis in FILE_ORDER else next(letters, "t") for axis in axes)
    return AxesError(
        f"{path} has the shape {shape} and does not say what its dimension of length {lengths[0]} "
        "is: planes (z), time points (t) or channels (c). Set axes in the configuration to one "
        f"letter for each dimension, in this order, such as {example!r}."
    )


def _check_planes(spec: SourceSpec, axes: str, letters: str, shape: Sizes) -> None:
    """Raise SourceError unless each plane is y, x and its samples, as in every TIFF."""
    for letter, axis in zip(letters, axes, strict=True):
        allowed = {"Y": "y", "X": "x", "S": "sc" + UNUSED}.get(letter)
        if (allowed is None and axis in "yxs") or (allowed is not None and axis not in allowed):
            raise AxesError(
                f"{spec.path}: axes {spec.axes!r} do not fit its shape {shape}. In TIFF each plane "
                "is y, x, and s its samples (red, green, blue); the axes lie in the order of the "
                "file, such as 'zyx' or 'zyxs'."
            )
