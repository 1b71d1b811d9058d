"""An image that was made to hurt ends in a sentence, within 5 s and 1 GB."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import pytest
from hostile import assert_refused, read_image

Write = Callable[[Path], Path]
ZEROS = 10**10  # bytes that a few kilobytes decode to

# --- Zarr -------------------------------------------------------------------------------------


def v2(**said: Any) -> Write:
    def write(folder: Path) -> Path:
        metadata = {"zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": "|u1"}
        metadata |= {"compressor": None, "filters": None, "fill_value": 0, "order": "C"}
        (folder / ".zarray").write_text(json.dumps(metadata | said))
        (folder / "0.0").write_bytes(bytes(64))
        return folder

    return write


def grid(*sizes: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": sizes}}


def v3(chunk: bytes | None = None, **said: Any) -> Write:
    def write(folder: Path) -> Path:
        metadata = {"zarr_format": 3, "node_type": "array", "shape": [8, 8], "data_type": "uint8"}
        metadata |= {"chunk_grid": grid(8, 8), "fill_value": 0, "codecs": [{"name": "bytes"}]}
        metadata |= {"chunk_key_encoding": {"name": "default"}, "attributes": {}}
        (folder / "zarr.json").write_text(json.dumps(metadata | said))
        (folder / "c" / "0").mkdir(parents=True)
        (folder / "c" / "0" / "0").write_bytes(bytes(64) if chunk is None else chunk)
        return folder

    return write


def sharded(inner: list[int], chunk: bytes | None = None) -> Write:
    inside = {"chunk_shape": inner, "codecs": [{"name": "bytes"}]}
    inside |= {"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}
    return v3(chunk, codecs=[{"name": "sharding_indexed", "configuration": inside}])


def packed_v3(codec: str, pack: Callable[[], bytes], **configuration: Any) -> Write:
    said = [{"name": "bytes"}, {"name": codec, "configuration": configuration}]
    return lambda folder: v3(pack(), codecs=said)(folder)


def packed_v2(codec: dict[str, Any], pack: Callable[[], bytes]) -> Write:
    def write(folder: Path) -> Path:
        v2(compressor=codec)(folder)
        (folder / "0.0").write_bytes(pack())
        return folder

    return write


def gzip_bomb(size: int = ZEROS) -> bytes:
    """Members of 10 MB of zeros each, one after the other."""
    return gzip.compress(bytes(10**7), 1, mtime=0) * (size // 10**7)


def zlib_bomb() -> bytes:
    """After a full flush, the same zeros are packed as the same bytes again."""
    packer, part = zlib.compressobj(1), bytes(10**7)
    first, again = (packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (ZEROS // len(part))


def zstd_bomb() -> bytes:
    return imagecodecs.zstd_encode(bytes(10**7)) * (ZEROS // 10**7)


def blosc_bomb() -> bytes:
    content = bytearray(numcodecs.Blosc().encode(bytes(10**6)))
    content[4:8] = struct.pack("<I", 2**31 - 17)
    return bytes(content)


def lying(pack: bytes, at: int, size: int) -> bytes:
    content = bytearray(pack)
    content[at : at + 4] = struct.pack("<I", size)
    return bytes(content)


def endless_link(write: Write, key: str) -> Write:
    def link(folder: Path) -> Path:
        write(folder)
        (folder / key).unlink()
        (folder / key).symlink_to("/dev/zero")
        return folder

    return link


def pipe(write: Write, key: str) -> Write:
    def make(folder: Path) -> Path:
        write(folder)
        (folder / key).unlink()
        os.mkfifo(folder / key)
        return folder

    return make


def sparse_chunk(folder: Path) -> Path:
    v3()(folder)
    with (folder / "c" / "0" / "0").open("r+b") as file:
        file.truncate(10**11)
    return folder


BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
ZARR: dict[str, Write] = {
    "v2 chunks of nothing": v2(chunks=[0, 0]),
    "v3 chunks of nothing": v3(chunk_grid=grid(0, 0)),
    "v2 one empty chunk side": v2(chunks=[8, 0]),
    "v2 negative chunks": v2(chunks=[-8, 8]),
    "v2 chunks of more axes": v2(chunks=[8, 8, 8]),
    "v2 chunks that are text": v2(chunks="88"),
    "v2 chunks of fractions": v2(chunks=[8.5, 8]),
    "v2 one channel for each number": v2(shape=[10**7, 8, 8], chunks=[10**7, 8, 8]),
    "v2 channels without end": v2(shape=[10**7, 8, 8], chunks=[1, 8, 8]),
    "v3 sizes of 10^36": v3(shape=[10**36, 10**36]),
    "v2 sizes of 10^36": v2(shape=[10**36, 10**36], chunks=[10**36, 10**36]),
    "v2 more pixels than there are": v2(shape=[10**15, 10**15], chunks=[1024, 1024]),
    "v2 negative": v2(shape=[-8, 8]),
    "v2 one chunk of everything": v2(shape=[10**9, 10**9], chunks=[10**9, 10**9]),
    "v2 chunks of a pixel": v2(shape=[10**6, 10**6], chunks=[1, 1]),
    "v2 many axes": v2(shape=[1] * 1000, chunks=[1] * 1000),
    "v2 other numbers": v2(dtype="|V1000000000"),
    "v2 long numbers": v2(dtype="<f16"),
    "v2 text": v2(dtype="<U100000000"),
    "v2 structures": v2(dtype=[["a", "|u1"]] * 3),
    "v3 shards of nothing": sharded([0, 0]),
    "v3 shards of other sizes": sharded([3, 3]),
    "v3 a shard index that leads outside": sharded([8, 8], struct.pack("<QQ", 2**62, 2**62)),
    "v3 a shard index that leads far": sharded([8, 8], struct.pack("<QQ", 0, 2**40)),
    "v3 a shard index of nothing": sharded([8, 8], b""),
    "v3 a short shard": sharded([8, 8], bytes(3)),
    "v3 a long chunk": v3(bytes(10**6)),
    "v3 a sparse chunk": sparse_chunk,
    "v3 no codec": v3(codecs=[]),
    "v3 a codec that is no name": v3(codecs=[1]),
    "v3 a codec that is not there": v3(codecs=[{"name": "bytes"}, {"name": "no"}]),
    "v3 a grid that is not there": v3(chunk_grid={"name": "no", "configuration": {}}),
    "v3 without a grid": v3(chunk_grid=None),
    "v3 without codecs": v3(codecs=None),
    "v3 deep": lambda p: v3(attributes=json.loads("[" * 900 + "]" * 900), shape=[0.5, 8])(p),
    "v3 deeper": lambda p: text(p, "zarr.json", "[" * 10**6),
    "v3 long numbers": lambda p: text(p, "zarr.json", '{"shape": [' + "9" * 10**6 + "]}"),
    "v3 not text": lambda p: text(p, "zarr.json", "\udcff"),
    "v3 gzip": packed_v3("gzip", gzip_bomb, level=5),
    "v3 zstd": packed_v3("zstd", zstd_bomb, level=5, checksum=False),
    "v3 blosc": packed_v3(
        "blosc", blosc_bomb, cname="lz4", clevel=5, shuffle="noshuffle", typesize=1, blocksize=0
    ),
    "v2 gzip": packed_v2({"id": "gzip", "level": 1}, gzip_bomb),
    "v2 zlib": packed_v2({"id": "zlib", "level": 1}, zlib_bomb),
    "v2 zstd": packed_v2({"id": "zstd", "level": 1}, zstd_bomb),
    "v2 bz2": packed_v2({"id": "bz2", "level": 1}, lambda: numcodecs.BZ2().encode(bytes(10**7))),
    "v2 lzma": packed_v2({"id": "lzma"}, lambda: numcodecs.LZMA().encode(bytes(10**7))),
    "v2 lz4": packed_v2(
        {"id": "lz4"}, lambda: lying(numcodecs.LZ4().encode(bytes(64)), 0, 2**31 - 1)
    ),
    "v2 blosc": packed_v2(BLOSC, blosc_bomb),
    "v2 blosc that is longer than its file": packed_v2(
        BLOSC, lambda: lying(numcodecs.Blosc().encode(bytes(64)), 12, 2**30)
    ),
    "v2 pickle": v2(compressor={"id": "pickle"}),
    "v2 a codec of numbers": v2(compressor={"id": 7}),
    "v2 a codec of text": v2(compressor="gzip"),
    "v2 filters of text": v2(filters="gzip"),
    "v2 a chunk without end": endless_link(v2(), "0.0"),
    "v3 a chunk without end": endless_link(v3(), "c/0/0"),
    "v2 a chunk that never comes": pipe(v2(), "0.0"),
    "v3 metadata that never come": pipe(v3(), "zarr.json"),
    "v3 metadata without end": endless_link(v3(), "zarr.json"),
}


def text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    return folder


def ome(**image: Any) -> Write:
    """An OME-Zarr image of one level, whose metadata say something else."""

    def write(folder: Path) -> Path:
        v2()(make(folder / "0"))
        scale = {"coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}
        said = {"axes": ["y", "x"], "datasets": [{"path": "0"} | scale]} | image
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [said]}))
        return folder

    return write


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def scaled(*scale: Any) -> dict[str, Any]:
    said = [{"type": "scale", "scale": scale}]
    return {"datasets": [{"path": "0", "coordinateTransformations": said}]}


OME: dict[str, Write] = {
    "no levels": ome(datasets=[]),
    "levels that are text": ome(datasets="0"),
    "a level outside": ome(datasets=[{"path": "../../0"}]),
    "a level that is the image": ome(datasets=[{"path": ""}]),
    "a long name of a level": ome(datasets=[{"path": "0/" * 10**5}]),
    "axes without end": ome(axes=["y"] * 10**5),
    "axes of numbers": ome(axes=[1, 2]),
    "an axis of a long name": ome(axes=["y" * 10**6, "x"]),
    "scales that are text": ome(**scaled("1", "a")),
    "scales of other axes": ome(**scaled(1)),
    "transformations that are text": ome(coordinateTransformations="no"),
    "a unit that is a number": ome(axes=[{"name": "y", "unit": 3}, {"name": "x", "unit": []}]),
}


@pytest.mark.parametrize("name", ZARR)
def test_zarr(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, ZARR[name](tmp_path))


@pytest.mark.parametrize("name", OME)
def test_ome_zarr(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, OME[name](tmp_path))
