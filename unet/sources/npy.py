"""NumPy's .npy files, the simplest way to pass an array. Any box can be read alone.

A .npz file with one array, as labels often are, is read whole: it is compressed in one piece.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from contextlib import closing
from typing import IO

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError, excerpt
from unet.sources.base import SourceSpec
from unet.sources.file import open_file
from unet.sources.image import RawImage, choose_axes, refuse_large
from unet.sources.levels import only_level

# what numpy raises for a damaged header, which it reads as Python's literals, and zipfile
UNREADABLE = (
    *(OSError, ValueError, EOFError, TypeError, LookupError, SyntaxError, ArithmeticError),
    *(RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


class NpyPixels:
    """The array of one .npy file, in C or Fortran order."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            with closing(open_file(path)) as file, file.stream() as stream:
                self.shape, self._fortran, self._dtype = _header(stream)
                self._offset, size = stream.tell(), file.size
        except UNREADABLE as error:
            raise _unreadable(path, excerpt(error)) from error
        self.dtype = self._dtype.newbyteorder("=")
        self.chunks = (1,) * len(self.shape)
        end = self._offset + math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.hasobject or size < end:
            raise _unreadable(path, f"{size} bytes of {end}, dtype {self.dtype}")

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """A copy of the pixels at `where`."""
        with closing(open_file(self._path)) as file:
            if not self._fortran:
                return file.read_box(self._dtype, self._offset, self.shape, where)
            return file.read_box(self._dtype, self._offset, self.shape[::-1], where[::-1]).T

    def close(self) -> None:
        """Nothing is open between reads."""


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _unreadable(path: str, problem: str) -> SourceError:
    return SourceError(
        f"{path} is not a .npy file of plain numbers that can be read in parts ({problem}). It is "
        "probably cut short, or holds Python objects; save it again with np.save."
    )


class NpzPixels:
    """The only array of an .npz file."""

    def __init__(self, path: str) -> None:
        self._array = _only_array(path)
        self.shape = self.chunks = self._array.shape
        self.dtype = self._array.dtype

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """A copy of the pixels at `where`."""
        return self._array[where].copy()

    def close(self) -> None:
        """The file was closed when it was read."""


def _only_array(path: str) -> NDArray[np.generic]:
    try:
        with (
            closing(open_file(path)) as file,
            file.stream() as stream,
            zipfile.ZipFile(stream) as arrays,
        ):
            name = _only_name(path, arrays.namelist())
            with arrays.open(name) as member:
                shape, _, dtype = _header(member)
            refuse_large(path, math.prod(shape) * dtype.itemsize)
            with arrays.open(name) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
    except UNREADABLE as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path} is not an .npz file of plain numbers ({excerpt(error)}). It is probably cut "
            "short, is another kind of ZIP file, or holds Python objects; save it again with "
            "np.savez."
        ) from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _only_name(path: str, names: list[str]) -> str:
    if len(names) != 1:
        arrays = ", ".join(name.removesuffix(".npy") for name in names[:20])
        raise SourceError(
            f"Expected one array in {path}, got {len(names)} ({arrays}). Save the one to read with "
            "np.save."
        )
    return names[0]


def _is_zip(path: str) -> bool:
    with closing(open_file(path)) as file, file.stream() as stream:
        return stream.read(2) == b"PK"


def open_npy(spec: SourceSpec) -> RawImage:
    """The array of a .npy or .npz file; its axes are the spec's, or "yx"."""
    pixels = NpzPixels(spec.path) if _is_zip(spec.path) else NpyPixels(spec.path)
    return RawImage(pixels, choose_axes(spec, pixels.shape), only_level(spec))
