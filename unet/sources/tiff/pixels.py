"""Reading the pixels of a level: only the pieces that a box touches are decoded.

Why not tifffile's own arrays: a block of a slide needs some dozen tiles of a plane of 10^10 pixels,
and decoding them one by one in the caller's thread is the fastest way there is. Pages are looked up
under a lock.

A piece that the format leaves out is background; one that the file is too short for is an error.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet.errors import SourceError, excerpt
from unet.planning.axes import Sizes
from unet.sources.file import File, open_file
from unet.sources.image import FilePixels
from unet.sources.tiff.pages import PageGrid, Where, paste

# what reading damaged structures raises; decoders raise RuntimeError, missing ones ImportError
DAMAGED = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(struct.error, ParseError, ImportError, MemoryError, AssertionError),
)
CONTIGUOUS_KINDS = {"imagej", "shaped", "stk"}  # whose planes may have no pages of their own


def open_level(path: str, tif: tifffile.TiffFile, level: tifffile.TiffPageSeries) -> FilePixels:
    """The pixels of a level, on tifffile's axes, those of length 1 included.

    Raises SourceError at once for a file that is too short for its first or last page.
    """
    pixels: ContiguousPixels | PagedPixels
    if level.kind in CONTIGUOUS_KINDS and level.dataoffset:
        pixels = ContiguousPixels(path, tif, level, level.dataoffset)
    else:
        pixels = PagedPixels(path, tif, level)
    try:
        pixels.check_end()
    except SourceError:
        pixels.close()
        raise
    return pixels


class _OpenFiles:
    """The files of a TIFF, by path: an OME-TIFF may lie in several. Each is opened once."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._lock = threading.Lock()

    def reaching(self, path: str, end: int) -> File:
        """The file, if it has at least `end` bytes. Raises SourceError."""
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

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class _LevelPixels:
    """What both ways to store a level share."""

    def __init__(self, path: str, tif: tifffile.TiffFile, level: tifffile.TiffPageSeries) -> None:
        self._path, self._tif, self._level = path, tif, level
        self._files = _OpenFiles()
        self.shape: Sizes = tuple(level.get_shape(False))
        self.dtype = np.dtype(level.dtype).newbyteorder("=")

    def close(self) -> None:
        """Close every file that was opened."""
        self._tif.close()
        self._files.close()

    def _read_uncompressed(
        self, tif: tifffile.TiffFile, offset: int, shape: Sizes, where: Where
    ) -> NDArray[np.generic]:
        """A copy of a part of an uncompressed array that lies at `offset`."""
        path, end = tif.filehandle.path, offset + math.prod(shape) * self.dtype.itemsize
        dtype = self.dtype.newbyteorder(tif.byteorder)
        return self._files.reaching(path, end).read_box(dtype, offset, shape, where)


class ContiguousPixels(_LevelPixels):
    """A level that lies uncompressed in one run of bytes from `offset`, all planes together."""

    def __init__(
        self, path: str, tif: tifffile.TiffFile, level: tifffile.TiffPageSeries, offset: int
    ) -> None:
        super().__init__(path, tif, level)
        self._offset = offset
        self.chunks: Sizes = (1,) * len(self.shape)

    def read(self, where: Where) -> NDArray[np.generic]:
        """The pixels at `where`."""
        return self._read_uncompressed(self._tif, self._offset, self.shape, where)

    def check_end(self) -> None:
        """Raise SourceError if the file is too short."""
        self.read((slice(0, 0),) * len(self.shape))


class PagedPixels(_LevelPixels):
    """A level that is made of pages."""

    def __init__(self, path: str, tif: tifffile.TiffFile, level: tifffile.TiffPageSeries) -> None:
        super().__init__(path, tif, level)
        keyframe = level.keyframe
        self._lock = threading.Lock()
        self._grid = PageGrid.of(path, self.shape, tuple(keyframe.shaped), _piece_shape(keyframe))
        # uncompressed pages can be read pixel by pixel
        self.chunks = (1,) * len(self.shape) if keyframe.is_final else self._grid.chunks

    def read(self, where: Where) -> NDArray[np.generic]:
        """The pixels at `where`; decodes in the calling thread. Raises SourceError."""
        try:
            return self._read(where)
        except DAMAGED as error:
            if isinstance(error, SourceError | MemoryError):
                raise
            raise SourceError(
                f"{self._path} cannot be read ({excerpt(error)}). Its structure is damaged; copy "
                "it again."
            ) from error

    def _read(self, where: Where) -> NDArray[np.generic]:
        out = np.empty(tuple(s.stop - s.start for s in where), self.dtype)
        on_page = self._grid.on_page(where)
        boxes = out.reshape(-1, *(s.stop - s.start for s in on_page))
        for number, into in zip(self._grid.pages_in(where), boxes, strict=True):
            self._read_page(self._page(number), on_page, into)
        return out

    def check_end(self) -> None:
        """Raise SourceError if a file is too short for its first or last page."""
        if self._level.kind == "ome":  # its pages may lie in other files
            for number in range(len(self._level)):
                self._page(number)
        for number in {0, self._grid.pages - 1} if 0 not in self.shape else ():
            page = self._page(number)
            ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
            self._files.reaching(page.parent.filehandle.path, max(ends, default=0))

    def _read_page(self, page: Any, where: Where, into: NDArray[np.generic]) -> None:
        """The box `where` of one page, on its five dimensions."""
        if page.keyframe.is_final and _is_joined(page):
            offset = page.dataoffsets[0]
            into[...] = self._read_uncompressed(page.parent, offset, self._grid.page, where)
            return
        into[...] = page.keyframe.nodata
        pieces = list(self._grid.pieces_in(where))
        contents = self._read_pieces(page, [number for number, _ in pieces])
        for (number, origin), content in zip(pieces, contents, strict=True):
            piece = _decode(page, number, content)
            if piece is not None:
                paste(piece, origin, into, where)

    def _read_pieces(self, page: Any, numbers: list[int]) -> Iterator[bytes | None]:
        """The bytes of each piece as they are in the file; None where the format leaves it out."""
        path = page.parent.filehandle.path
        count = min(len(page.dataoffsets), len(page.databytecounts))
        if max(numbers, default=-1) >= count:
            raise SourceError(
                f"{path}: page {page.index} lists {count} tiles or strips, and number "
                f"{max(numbers)} is needed. The file is damaged; copy it again."
            )
        ranges = [(page.dataoffsets[number], page.databytecounts[number]) for number in numbers]
        stored = [(offset, length) for offset, length in ranges if offset > 0 and length > 0]
        end = max((offset + length for offset, length in stored), default=0)
        contents = self._files.reaching(path, end).read_ranges(stored)
        for offset, length in ranges:
            yield next(contents) if offset > 0 and length > 0 else None

    def _page(self, number: int) -> Any:
        """A page of the level, loaded from the file if it is not yet."""
        with self._lock:
            try:
                page = self._level[number]
            except DAMAGED as error:
                raise SourceError(
                    f"{self._path}: page {number} of {len(self._level)} cannot be read ({error}). "
                    "The file is probably cut short; copy it again."
                ) from error
        if page is None:
            raise SourceError(
                f"{self._path}: plane {number} of {len(self._level)} that its metadata list is not "
                "there. The file is cut short, or one of the files it names is missing; copy it "
                "again."
            )
        return page


def _decode(page: Any, number: int, content: bytes | None) -> NDArray[np.generic] | None:
    """One piece, decoded, on the five dimensions; None where the format leaves it out."""
    path, keyframe = page.parent.filehandle.path, page.keyframe
    try:
        piece, _, _ = keyframe.decode(
            content, number, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader
        )
    except DAMAGED as error:
        raise SourceError(
            f"{path}: tile or strip {number} of page {page.index} cannot be decoded ({error}). The "
            "file is damaged, or its compression is unknown; copy it again, or convert it to "
            "another compression."
        ) from error
    return None if piece is None else piece[np.newaxis]


def _piece_shape(keyframe: tifffile.TiffPage) -> Sizes:
    """The shape of a tile or strip, on the five dimensions of a page."""
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
