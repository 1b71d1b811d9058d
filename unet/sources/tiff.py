"""TIFF of every kind: slides, pyramids, stacks; only the pieces that a box touches are decoded.

Why not tifffile's own arrays: a block of a slide needs some dozen tiles of a plane of 10^10 pixels,
and decoding them one by one in the caller's thread is the fastest way there is. Pages are looked up
under a lock.

A piece that the format says is absent is background; one that the file is too short for is an
error. This is the only module that imports tifffile.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.axes import Sizes
from unet.sources import tiff_metadata
from unet.sources.base import SourceSpec
from unet.sources.file import File, open_file, to_open
from unet.sources.image import UNUSED, RawImage, choose_level, level_factor

Where = tuple[slice, ...]
# what reading damaged structures raises; decoders raise RuntimeError, missing ones ImportError
DAMAGED = (OSError, ValueError, RuntimeError, LookupError, struct.error, ParseError, ImportError)
RAW_STACKS = {"imagej", "shaped", "stk"}
MAKERS = {"svs", "ndpi", "scn", "qpi"}


class TiffPixels:
    """One level of one series, on tifffile's axes with those of length 1."""

    def __init__(self, path: str, tif: tifffile.TiffFile, level: tifffile.TiffPageSeries) -> None:
        self._path, self._tif, self._level = path, tif, level
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        keyframe = level.keyframe
        self.shape: Sizes = tuple(level.get_shape(False))
        self.dtype = np.dtype(level.dtype).newbyteorder("=")
        # one run of bytes for all planes, which may have no pages of their own
        self._raw = level.dataoffset if level.kind in RAW_STACKS else None
        self._plane: Sizes = tuple(keyframe.shaped)  # separate samples, z, y, x, samples
        self._piece = _piece_shape(keyframe)
        self._leading = 0 if self._raw else _leading(path, self.shape, self._plane)
        if self._raw or keyframe.is_final:
            self.chunks: Sizes = (1,) * len(self.shape)
        else:
            self.chunks = (1,) * self._leading + self._page_chunks()

    def read(self, where: Where) -> NDArray[np.generic]:
        """The pixels at `where`; decodes in the calling thread."""
        if self._raw:
            return self._mapped(self._tif, self._raw, self.shape, where)
        out = np.empty(tuple(s.stop - s.start for s in where), self.dtype)
        leading, inner = where[: self._leading], self._to_plane(where[self._leading :])
        pages = np.arange(math.prod(self.shape[: self._leading]))
        pages = pages.reshape(self.shape[: self._leading])[leading]
        box = tuple(s.stop - s.start for s in inner)
        for index, into in zip(pages.flat, out.reshape(-1, *box), strict=True):
            self._read_page(int(index), inner, into)
        return out

    def close(self) -> None:
        """Close every file that was opened."""
        self._tif.close()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _to_plane(self, where: Where) -> Where:
        """The slices of a page's dimensions, spread on the five that its pieces are counted on."""
        long = [s for s, size in zip(where, self.shape[self._leading :], strict=True) if size > 1]
        return tuple(long.pop(0) if size > 1 else slice(0, 1) for size in self._plane)

    def _page_chunks(self) -> Sizes:
        """The shape of a piece, on the page's dimensions."""
        long = [p for p, size in zip(self._piece, self._plane, strict=True) if size > 1]
        return tuple(long.pop(0) if size > 1 else 1 for size in self.shape[self._leading :])

    def _read_page(self, index: int, where: Where, into: NDArray[np.generic]) -> None:
        """The box `where` of one page, on its five dimensions."""
        page = self._page(index)
        if page.keyframe.is_final and _is_joined(page):
            into[...] = self._mapped(page.parent, page.dataoffsets[0], self._plane, where)
            return
        into[...] = page.keyframe.nodata
        counts = [-(-n // p) for n, p in zip(self._plane, self._piece, strict=True)]
        touched = [
            range(s.start // p, -(-s.stop // p)) for s, p in zip(where, self._piece, strict=True)
        ]
        positions = list(product(*touched))
        segments = [int(np.ravel_multi_index(position, counts)) for position in positions]
        encoded = self._encoded(page, segments)
        for position, segment, data in zip(positions, segments, encoded, strict=True):
            piece = self._decode(page, segment, data)
            if piece is not None:
                origin = [p * n for p, n in zip(position, self._piece, strict=True)]
                _paste(piece, origin, into, where)

    def _decode(self, page: Any, segment: int, data: bytes | None) -> NDArray[np.generic] | None:
        """One decoded piece as (1, z, y, x, samples); None where the format leaves it out."""
        path, keyframe = page.parent.filehandle.path, page.keyframe
        try:
            piece, _, _ = keyframe.decode(
                data, segment, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader
            )
        except DAMAGED as error:
            raise SourceError(
                f"{path}: tile or strip {segment} of page {page.index} cannot be decoded "
                f"({error}). The file is damaged, or its compression is unknown; copy it again, "
                "or convert it to another compression."
            ) from error
        return None if piece is None else piece[np.newaxis]

    def _encoded(self, page: Any, segments: list[int]) -> Iterator[bytes | None]:
        """The bytes of each piece as they are in the file; None where the format leaves it out."""
        path = page.parent.filehandle.path
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if max(segments, default=-1) >= listed:
            raise SourceError(
                f"{path}: page {page.index} lists {listed} tiles or strips, and number "
                f"{max(segments)} is needed. The file is damaged; copy it again."
            )
        ranges = [(page.dataoffsets[segment], page.databytecounts[segment]) for segment in segments]
        there = [(offset, count) for offset, count in ranges if offset > 0 and count > 0]
        end = max((offset + count for offset, count in there), default=0)
        found = self._file(path, end).pieces(there)
        for offset, count in ranges:
            yield next(found) if offset > 0 and count > 0 else None

    def _mapped(
        self, tif: tifffile.TiffFile, offset: int, shape: Sizes, where: Where
    ) -> NDArray[np.generic]:
        """A copy of part of uncompressed data; the map lives no longer than the read."""
        path, end = tif.filehandle.path, offset + math.prod(shape) * self.dtype.itemsize
        dtype = self.dtype.newbyteorder(tif.byteorder)
        return self._file(path, end).box(dtype, offset, shape, where)

    def _file(self, path: str, end: int) -> File:
        """An open file that reaches to byte `end`."""
        with self._lock:
            if path not in self._files:
                try:
                    self._files[path] = open_file(path)
                except OSError as error:
                    raise SourceError(f"{path} cannot be opened ({error}).") from error
            file = self._files[path]
        if end > file.size:
            raise SourceError(
                f"{path} ends at byte {file.size}, but its image reaches to byte {end}. It was "
                "probably cut short by a copy or a full disk; copy it again and compare the sizes."
            )
        return file

    def _page(self, index: int) -> Any:
        """Page `index` of the level, loaded from the file if it is not yet."""
        with self._lock:
            try:
                page = self._level[index]
            except DAMAGED as error:
                raise SourceError(
                    f"{self._path}: page {index} of {len(self._level)} cannot be read ({error}). "
                    "The file is probably cut short; copy it again."
                ) from error
        if page is None:
            raise SourceError(
                f"{self._path}: plane {index} of {len(self._level)} that its metadata list is not "
                "there. The file is cut short, or one of the files it names is missing."
            )
        return page

    def check_ends(self) -> None:
        """Refuse at once a file that is too short for its first or last page."""
        if self._raw:
            self._mapped(self._tif, self._raw, self.shape, (slice(0, 0),) * len(self.shape))
            return
        if self._level.kind == "ome":
            for index in range(len(self._level)):
                self._page(index)
        for index in {0, math.prod(self.shape[: self._leading]) - 1} if 0 not in self.shape else ():
            page = self._page(index)
            ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
            self._file(page.parent.filehandle.path, max(ends, default=0))


def find_tiff(spec: SourceSpec) -> RawImage:
    """The level of a TIFF file that `spec` asks for."""
    with ExitStack() as opened:  # closes what is open unless all goes well
        try:
            tif = opened.enter_context(tifffile.TiffFile(to_open(spec.path)))
            series = tif.series
            if not series:
                raise tifffile.TiffFileError("it holds no image")
            next_page = _next_page(tif)
        except (*DAMAGED, TypeError, ArithmeticError) as error:
            raise SourceError(
                f"{spec.path} begins like a TIFF file but cannot be read as one ({error}). It is "
                "probably cut short or damaged; copy it again and compare the sizes."
            ) from error
        # the largest is not a thumbnail, a label or an overview of the slide
        _refuse_appended(spec, series)
        main = max(series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
        _check_series(spec, tif, main, next_page)
        found = _find(spec, tif, main)
        opened.pop_all()
    return found


def _refuse_appended(spec: SourceSpec, series: list[tifffile.TiffPageSeries]) -> None:
    """Raise SourceError for images that were appended one by one: which is meant is not said."""
    first = series[0]
    if len(series) > 1 and all(s.kind == "shaped" and s.shape == first.shape for s in series):
        raise SourceError(
            f"{spec.path} holds {len(series)} images of shape {first.shape} that were appended "
            "one by one, and does not say that they are one stack. Write them as one array, for "
            "example tifffile.imwrite(path, stack, metadata={'axes': 'ZYX'}), or as a folder of "
            "slices."
        )


def _find(spec: SourceSpec, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> RawImage:
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
    pixels = TiffPixels(spec.path, tif, level)
    try:
        pixels.check_ends()
    except SourceError:
        pixels.close()
        raise
    return RawImage(pixels, axes, pixel_size, names)


def _check_series(
    spec: SourceSpec, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, next_page: int | None
) -> None:
    """Refuse a file that has lost pages, and pixels that are not an image."""
    described = tif.is_ome or tif.is_imagej
    if (
        next_page is None
        or next_page >= tif.filehandle.size
        or (described and series.kind in ("generic", "uniform"))
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
    """What follows the last page found: 0 at a proper end, None if the file ends there."""
    size = tif.tiff.offsetsize
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    data = tif.filehandle.read(size)
    return int(struct.unpack(tif.tiff.offsetformat, data)[0]) if len(data) == size else None


def _metadata(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size of level 0 and channel names, from whoever wrote the file."""
    keyframe = series.keyframe
    tags = tiff_metadata.from_resolution(
        keyframe.resolution, int(keyframe.resolutionunit), series.kind in MAKERS
    )
    if tif.is_ome and series.kind != "imagej":
        xml = tifffile.xml2dict(tif.ome_metadata or "", sep="")
        return tiff_metadata.from_ome(xml, tif.series.index(series))
    if series.kind == "imagej":
        shape = dict(zip(series.get_axes(False), series.get_shape(False), strict=True))
        return tiff_metadata.from_imagej(
            tif.imagej_metadata or {}, keyframe.resolution, shape.get("C", 1)
        )
    if series.kind == "svs":
        return tiff_metadata.from_aperio(keyframe.description) or tags, ()
    if series.kind == "qpi":
        pages = [page for page in series if isinstance(page, tifffile.TiffPage)]
        return tags, tiff_metadata.qptiff_names([page.description for page in pages])
    return tags, ()


def _file_axes(spec: SourceSpec, level: tifffile.TiffPageSeries) -> str:
    """One letter for each of the level's dimensions, those of length 1 included.

    The spec's axes may name all dimensions, or leave out those of length 1.
    """
    shape, letters = level.get_shape(False), level.get_axes(False)
    short = "".join(
        a.lower() if n > 1 or a in "YX" else UNUSED for a, n in zip(letters, shape, strict=True)
    )
    if spec.axes is None:
        unknown = [a for a in short if a not in "tczyxs" + UNUSED]
        if unknown:
            raise SourceError(
                f"{spec.path} has shape {level.get_shape(True)} and does not say what its axis "
                f"{unknown[0].upper()!r} of tifffile's {level.get_axes(True)!r} is. Set axes in "
                "the configuration to one letter a dimension, such as 'zyx' or 'cyx'."
            )
        return short
    for kept in (short, letters, "".join(UNUSED if n == 1 else "k" for n in shape)):
        if len(kept.replace(UNUSED, "")) == len(spec.axes):
            given = iter(spec.axes)
            axes = "".join(a if a == UNUSED else next(given) for a in kept)
            _check_planes(spec, axes, letters)
            return axes
    raise SourceError(
        f"{spec.path}: axes {spec.axes!r} name {len(spec.axes)} dimensions, but the image has "
        f"{level.get_axes(True)!r} of shape {level.get_shape(True)}. Set axes in the configuration "
        "to one letter for each of these."
    )


def _check_planes(spec: SourceSpec, axes: str, letters: str) -> None:
    """Refuse axes under which a plane of a TIFF were something else than y, x and its samples."""
    for known, axis in zip(letters, axes, strict=True):
        allowed = {"Y": "y", "X": "x", "S": "sc" + UNUSED}.get(known)
        if (allowed is None and axis in "yxs") or (allowed is not None and axis not in allowed):
            raise SourceError(
                f"{spec.path}: axes {spec.axes!r} do not fit its dimensions {letters!r}. In TIFF "
                "each plane is y, x, and s its samples (red, green, blue); the axes lie in the "
                "order of the file, such as 'zyx' or 'zyxs'."
            )


def _leading(path: str, shape: Sizes, plane: Sizes) -> int:
    """How many of the level's dimensions count pages; the others lie within one."""
    inside = [n for n in plane if n > 1]
    for leading in range(len(shape) + 1):
        if [n for n in shape[leading:] if n > 1] == inside:
            return leading
    raise SourceError(
        f"{path}: its pages of {plane} do not make up its shape {shape}. Its metadata are damaged, "
        "or written by a program that this one does not know; convert it to OME-TIFF."
    )


def _piece_shape(keyframe: tifffile.TiffPage) -> Sizes:
    """The shape of a tile or strip: separate samples, z, y, x, samples."""
    _, _, length, width, samples = keyframe.shaped
    if keyframe.is_tiled:
        return (1, keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth, samples)
    return (1, 1, min(keyframe.rowsperstrip or length, length), width, samples)


def _is_joined(page: Any) -> bool:
    """Whether a page's uncompressed strips follow one another in the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    return offsets[0] > 0 and all(
        a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False)
    )


def _paste(
    piece: NDArray[np.generic], origin: list[int], out: NDArray[np.generic], where: Where
) -> None:
    """Copy the part of a piece that lies in the box `where` to its place in `out`."""
    target, source = [], []
    for start, length, box in zip(origin, piece.shape, where, strict=True):
        first, last = max(start, box.start), min(start + length, box.stop)
        if first >= last:
            return
        target.append(slice(first - box.start, last - box.start))
        source.append(slice(first - start, last - start))
    out[tuple(target)] = piece[tuple(source)]
