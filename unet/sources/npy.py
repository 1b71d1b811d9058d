"""NumPy's .npy files, read through a memory map: the simplest way to hand over an array.

A map is opened for each read and dropped with it, so that its pages do not count as the worker's
memory for longer than a block.
"""

from __future__ import annotations

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


def find_npy(spec: SourceSpec) -> Found:
    """The array behind `spec`; its axes are the spec's, or "yx"."""
    pixels = NpyPixels(spec.path)
    _, pixel_size = choose_level(spec, {}, [{}])
    return Found(pixels, stated_axes(spec, pixels.shape), pixel_size)
