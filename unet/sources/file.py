"""Files read by position, from any thread: on a disk, or behind a URL by range requests.

Of uncompressed data only the box is read. On a disk the file is mapped for the time of the read: a
map that lived longer would count as memory of the worker. Behind a URL the rows of the box are
requested, and rows that lie near each other by one request.
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

BUFFER_BYTES = 1 << 16  # read at once while a library follows the structure of a file


class File(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range, (offset, count) inside the file, in order."""
        ...

    def read_box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy of a part of an array that lies uncompressed at `offset`, in C order."""
        ...

    def stream(self) -> BinaryIO:
        """The file from its start, for a library that seeks and reads; the library closes it."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_file(path: str) -> File:
    """Open a file behind a path or URL. Raises OSError."""
    location = locate(path)
    return RemoteFile(location) if isinstance(location, RemotePath) else LocalFile(location)


def path_or_stream(path: str) -> str | BinaryIO:
    """For a library that opens files itself: the path of a local file, or the stream of a URL."""
    location = locate(path)
    return RemoteFile(location).stream() if isinstance(location, RemotePath) else str(location)


class LocalFile:
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        """How many bytes it has now."""
        return os.fstat(self._file).st_size

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range; each is read when the caller asks for it."""
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

    def read_box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy out of a memory map."""
        array = np.memmap(self._path, dtype, "r", offset, shape)
        return np.array(array[where], dtype=dtype.newbyteorder("="))

    def stream(self) -> BinaryIO:
        """The file, opened once more."""
        return self._path.open("rb")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class RemoteFile:
    """An object behind a URL."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self.size = path, path.stat().st_size

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range; all are requested in parallel."""
        return iter(self.path.read_ranges(ranges))

    def read_box(
        self, dtype: np.dtype, offset: int, shape: Sizes, where: tuple[slice, ...]
    ) -> NDArray[np.generic]:
        """A copy, read run by run: a run is the largest part of the box that lies in one piece."""
        out = np.empty([s.stop - s.start for s in where], dtype)
        if out.size == 0:
            return out.astype(dtype.newbyteorder("="))
        inner = len(shape)  # the axes from inner - 1 on lie in one run of bytes
        while inner > 1 and shape[inner - 1] == out.shape[inner - 1]:
            inner -= 1
        run = math.prod(out.shape[inner - 1 :]) * dtype.itemsize
        strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
        first = offset + where[inner - 1].start * strides[inner - 1]
        outer = product(*(range(s.start, s.stop) for s in where[: inner - 1]))
        starts = (first + sum(map(int.__mul__, index, strides)) for index in outer)
        rows = self.path.read_ranges([(start, run) for start in starts])
        for row, into in zip(rows, out.reshape(len(rows), -1), strict=True):
            into[:] = np.frombuffer(row, dtype)
        return out.astype(dtype.newbyteorder("="), copy=False)

    def stream(self) -> BinaryIO:
        """The object as a file that seeks."""
        return io.BufferedReader(_RemoteStream(self), BUFFER_BYTES)

    def close(self) -> None:
        """Nothing is open between requests."""


class _RemoteStream(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._position = file, 0
        self.name = str(file.path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}
        self._position = offset + origins.get(whence, self._file.size)
        return self._position

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        count = max(0, min(len(view), self._file.size - self._position))
        for data in self._file.read_ranges([(self._position, count)] if count else []):
            view[:count] = data
        self._position += count
        return count
