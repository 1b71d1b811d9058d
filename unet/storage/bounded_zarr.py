"""Decoding the chunks of others' Zarr arrays: each codec stops where the chunk is full.

Why not the codecs as they are: they give whatever a chunk decodes to, and a kilobyte may decode to
a terabyte.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import math
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numcodecs
import numcodecs.abc
import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.metadata import ArrayV2Metadata
from zarr.storage import LocalStore, WrapperStore

Decode = Callable[[bytes, int, Mapping[str, Any]], Any]


def _gzip(data: bytes, most: int, _: Mapping[str, Any]) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(most + 1)


def _zlib(data: bytes, most: int, _: Mapping[str, Any]) -> bytes:
    return zlib.decompressobj().decompress(data, most + 1)


def _bz2(data: bytes, most: int, _: Mapping[str, Any]) -> bytes:
    with bz2.BZ2File(io.BytesIO(data)) as file:
        return file.read(most + 1)


def _lzma(data: bytes, most: int, said: Mapping[str, Any]) -> bytes:
    kind, filters = said.get("format", lzma.FORMAT_XZ), said.get("filters")
    limit = None if kind == lzma.FORMAT_RAW else 1 << 28
    return lzma.LZMADecompressor(kind, limit, filters).decompress(data, most + 1)


def _zstd(data: bytes, most: int, _: Mapping[str, Any]) -> bytes:
    return bytes(imagecodecs.zstd_decode(data, out=most))


def _blosc(data: bytes, most: int, _: Mapping[str, Any]) -> Any:
    size, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    if not 16 <= stored <= len(data) or size > most:
        raise ValueError(f"it says to have {size} bytes from {stored}, of {most} and {len(data)}")
    return numcodecs.get_codec({"id": "blosc"}).decode(data)


def _lz4(data: bytes, most: int, _: Mapping[str, Any]) -> Any:
    size = int.from_bytes(data[:4], "little")
    if size > most:
        raise ValueError(f"it says to have {size} bytes, of {most}")
    return numcodecs.get_codec({"id": "lz4"}).decode(data)


DECODERS: dict[str, Decode] = {
    "gzip": _gzip, "zlib": _zlib, "bz2": _bz2, "lzma": _lzma,
    "zstd": _zstd, "blosc": _blosc, "lz4": _lz4,
}  # fmt: skip
# These give at most eight times the bytes that they are given.
TRANSFORMS = frozenset(
    {
        *("bytes", "endian", "transpose", "sharding_indexed", "shuffle", "delta", "astype"),
        *("fixedscaleoffset", "quantize", "bitround", "packbits"),
        *("crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3"),
    }
)


def _decode(name: str, data: bytes, most: int, said: Mapping[str, Any]) -> Any:
    try:
        decoded = DECODERS[name](data, most, said)
    except (EOFError, TypeError, LookupError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name} cannot decode it ({error})") from error
    if len(decoded) > most:
        raise ValueError(f"a chunk decodes to more than the {most} bytes that it can have")
    return decoded


def _most_bytes(chunk_bytes: int) -> int:
    """Of what a codec may give: another codec may have packed it, which makes it little larger."""
    return 2 * chunk_bytes + (1 << 16)


@dataclass(frozen=True)
class _BoundedV3(BytesBytesCodec):
    """A codec of Zarr v3 that stops where the chunk is full."""

    codec: BytesBytesCodec
    name: str

    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        itemsize = chunk_spec.dtype.to_native_dtype().itemsize
        most = _most_bytes(math.prod(chunk_spec.shape) * itemsize)
        said = getattr(self.codec, "codec_config", {})
        decoded = await asyncio.to_thread(_decode, self.name, chunk_bytes.to_bytes(), most, said)
        return chunk_spec.prototype.buffer.from_bytes(bytes(decoded))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Unknown: what it gives depends on the bytes."""
        raise NotImplementedError


class _BoundedV2(numcodecs.abc.Codec):  # type: ignore[misc]
    """A codec of Zarr v2 that stops where the chunk is full."""

    codec_id = "bounded"  # which no file can name, since it is not registered

    def __init__(self, codec: Any, most: int) -> None:
        self.codec, self.most = codec, most

    def encode(self, buf: Any) -> Any:
        """Nothing is written."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:  # noqa: ARG002
        """The bytes of the chunk."""
        return _decode(self.codec.codec_id, bytes(buf), self.most, self.codec.get_config())


class _BoundedStore(WrapperStore[LocalStore]):
    """The files of an array: of each only as much is read as a chunk can have."""

    def __init__(self, store: LocalStore, most: int = 0) -> None:
        super().__init__(store)
        self._most = most

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """A file, or a part of it; None if it is not there."""
        try:
            found = os.stat(self._store.root / key)  # noqa: PTH116  # of what a link leads to
        except (FileNotFoundError, NotADirectoryError):
            return None
        start, end = getattr(byte_range, "start", 0), getattr(byte_range, "end", found.st_size)
        most = found.st_size if byte_range else self._most
        if not stat.S_ISREG(found.st_mode) or not 0 <= start < end <= most:
            raise ValueError(f"{key} is no file from which bytes {start} to {end} can be read")
        return await self._store.get(key, prototype, byte_range)


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, whose chunks are decoded within bounds."""
    opened, metadata = array.async_array, array.metadata
    most = _most_bytes(math.prod(metadata.chunks) * np.dtype(array.dtype).itemsize)
    if isinstance(metadata, ArrayV2Metadata):
        metadata = replace(
            metadata,
            compressor=_bounded_v2(metadata.compressor, most),
            filters=tuple(_bounded_v2(codec, most) for codec in metadata.filters or ()) or None,
        )
    else:
        metadata = replace(metadata, codecs=tuple(map(_bounded_codec, metadata.codecs)))
    path = opened.store_path
    if isinstance(path.store, LocalStore):
        path = type(path)(_BoundedStore(path.store, 2 * most), path.path)
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=path, config=opened.config))


def _bounded_v2(codec: Any, most: int) -> Any:
    return _BoundedV2(codec, most) if codec and codec.codec_id in DECODERS else codec


def _bounded_codec(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(map(_bounded_codec, codec.codecs)))
    name = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
    return (
        _BoundedV3(codec, name)
        if isinstance(codec, BytesBytesCodec) and name in DECODERS
        else codec
    )
