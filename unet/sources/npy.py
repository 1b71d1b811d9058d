"""NumPy's .npy files, read through a memory map: the simplest way to hand over an array.

A map is opened for each read and dropped with it, so that its pages do not count as the worker's
memory for longer than a block. A .npz file with one array, which labels often come as, is read
whole: it is compressed in one piece.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.sources.base import SourceSpec
from unet.sources.image import Found, choose_level, stated_axes


class NpyPixels:
    """The array of one .npy file, in C or Fortran order."""

    def __init__(self, path: str) -> None:
        self._path = path
        array = self._map()
        self.shape = array.shape
        self.dtype = array.dtype.newbyteorder("=")
        self.chunks = (1,) * array.ndim

    def read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        """A copy of the pixels at `where`."""
        return np.array(self._map()[where], dtype=self.dtype)

    def close(self) -> None:
        """Nothing is open between reads."""

    def _map(self) -> NDArray[np.generic]:
        try:
            array: NDArray[np.generic] = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SourceError(
                f"{self._path} is not a .npy file of plain numbers that can be mapped ({error}). "
                "It is probably cut short, or holds Python objects; save it again with np.save."
            ) from error
        return array


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
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if len(file.files) != 1:
                raise SourceError(
                    f"Expected one array in {path}, got {len(file.files)} "
                    f"({', '.join(file.files)}). Save the one that is meant with np.save."
                )
            array: NDArray[np.generic] = file[file.files[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path} is not an .npz file of plain numbers ({error}). It is probably cut short, is "
            "another kind of ZIP file, or holds Python objects; save it again with np.savez."
        ) from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_zip(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(2) == b"PK"


def find_npy(spec: SourceSpec) -> Found:
    """The array of a .npy or .npz file; its axes are the spec's, or "yx"."""
    pixels = NpzPixels(spec.path) if _is_zip(spec.path) else NpyPixels(spec.path)
    _, pixel_size = choose_level(spec, {}, [{}])
    return Found(pixels, stated_axes(spec, pixels.shape), pixel_size)
