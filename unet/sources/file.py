"""Files read by position, from any thread: on a disk, or behind a URL by range requests.

Of uncompressed data a box is copied without the rest. On a disk it is mapped, and the map lives no
longer than the read, so that its pages do not count as the worker's memory for longer than a block.
Behind a URL its rows are asked for, and those that lie near each other by one request.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.axes import Sizes
from unet.storage.location import RemotePath, locate

HEADERS = 1 << 16  # bytes read at once while a file's structure is followed


class File(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range, (offset, count) inside the file, in order."""
        ...

    def box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy of a part of an array that lies uncompressed at `offset`, in C order."""
        ...

    def stream(self) -> BinaryIO:
        """The file from its start, for libraries that want to seek and read; closed by them."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_file(path: str) -> File:
    """Open a file behind a path or URL. Raises OSError."""
    where = locate(path)
    return RemoteFile(where) if isinstance(where, RemotePath) else LocalFile(where)


def to_open(path: str) -> str | BinaryIO:
    """What a library that opens files by itself is given: the path, or a URL's file."""
    where = locate(path)
    return RemoteFile(where).stream() if isinstance(where, RemotePath) else str(where)


class LocalFile:
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        """Its bytes now."""
        return os.fstat(self._file).st_size

    def pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Each range, read when it is its turn."""
        for offset, count in ranges:
            data = os.pread(self._file, count, offset)
            while len(data) < count:  # the system reads at most 2 GiB at once
                more = os.pread(self._file, count - len(data), offset + len(data))
                if not more:
                    raise SourceError(
                        f"{self._path} was cut short while it was read. Copy it again, and leave "
                        f"it as it is until the image is ingested."
                    )
                data += more
            yield data

    def box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy from a map."""
        mapped = np.memmap(self._path, dtype, "r", offset, shape)
        return np.array(mapped[where], dtype=dtype.newbyteorder("="))

    def stream(self) -> BinaryIO:
        """The file, opened again."""
        return self._path.open("rb")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class RemoteFile:
    """An object behind a URL."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self.size = path, path.stat().st_size

    def pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """All ranges, asked for side by side."""
        return iter(self.path.read_ranges(ranges))

    def box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy, from the runs of bytes that make it up."""
        out = np.empty([s.stop - s.start for s in where], dtype)
        if out.size == 0:
            return out.astype(dtype.newbyteorder("="))
        inner = len(shape)  # from this axis on, what is asked for lies in one run
        while inner > 1 and shape[inner - 1] == out.shape[inner - 1]:
            inner -= 1
        run = math.prod(out.shape[inner - 1 :]) * dtype.itemsize
        strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
        first = offset + where[inner - 1].start * strides[inner - 1]
        outer = product(*(range(s.start, s.stop) for s in where[: inner - 1]))
        starts = (first + sum(map(int.__mul__, at, strides)) for at in outer)
        rows = self.path.read_ranges([(start, run) for start in starts])
        for row, into in zip(rows, out.reshape(len(rows), -1), strict=True):
            into[:] = np.frombuffer(row, dtype)
        return out.astype(dtype.newbyteorder("="), copy=False)

    def stream(self) -> BinaryIO:
        """The object as a file that seeks."""
        return io.BufferedReader(_Seeking(self), HEADERS)

    def close(self) -> None:
        """Nothing is open between requests."""


class _Seeking(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0
        self.name = str(file.path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._file.size)
        return self._at

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        count = max(0, min(len(view), self._file.size - self._at))
        for data in self._file.pieces([(self._at, count)] if count else []):
            view[:count] = data
        self._at += count
        return count
