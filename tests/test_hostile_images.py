"""An image that was made to hurt ends in a sentence, within 5 s and 1 GB."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
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


def sparse_metadata(name: str) -> Write:
    def write(folder: Path) -> Path:
        ome()(folder)
        with (folder / name).open("r+b") as file:
            file.truncate(10**11)
        return folder

    return write


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


for _name in (".zattrs", ".zgroup"):
    OME[f"{_name} without end"] = endless_link(ome(), _name)
    OME[f"{_name} that never come"] = pipe(ome(), _name)
    OME[f"a sparse {_name}"] = sparse_metadata(_name)


@pytest.mark.parametrize("name", ZARR)
def test_zarr(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, ZARR[name](tmp_path))


@pytest.mark.parametrize("name", OME)
def test_ome_zarr(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, OME[name](tmp_path))


# --- NumPy ------------------------------------------------------------------------------------


def npy_header(said: str, content: bytes = bytes(64)) -> Write:
    def write(folder: Path) -> Path:
        header = (said + "\n").encode()
        start = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header))
        (folder / "i.npy").write_bytes(start + header + content)
        return folder / "i.npy"

    return write


def npy(shape: str, dtype: str = "|u1", order: str = "False") -> Write:
    return npy_header(f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}}}")


def npz(content: bytes, name: str = "a.npy") -> Write:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "i.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, content)
        return folder / "i.npz"

    return write


def npz_bomb(folder: Path) -> Path:
    start = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        start, {"descr": "|u1", "fortran_order": False, "shape": (10**5, 10**5)}
    )
    with (
        zipfile.ZipFile(folder / "i.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("a.npy", "w", force_zip64=True) as into,
    ):
        into.write(start.getvalue())
        for _ in range(200):
            into.write(bytes(10**7))
    return folder / "i.npz"


def npz_of_many(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "i.npz", "w") as file:
        for number in range(20_000):
            file.writestr(f"{number}.npy", b"")
    return folder / "i.npz"


NUMPY: dict[str, Write] = {
    "sizes of 10^36": npy(f"({10**36}, {10**36})"),
    "sizes that multiply to nothing": npy(f"({2**32}, {2**32})"),
    "negative": npy("(-8, -8)"),
    "many axes": npy("(" + "1, " * 1000 + ")"),
    "sizes that are no numbers": npy("('a', 8)"),
    "sizes of a fraction": npy("(0.5, 8)"),
    "true": npy("(True, True)", "|O"),
    "wide numbers": npy("(8, 8)", "|V1000000000"),
    "long text": npy("(8, 8)", "<U1000000000"),
    "objects": npy("(8, 8)", "|O"),
    "a long header": npy_header("{" + " " * 10**8 + "}"),
    "a deep header": npy_header("(" * 10**4),
    "deep": npy_header("[" * 90 + "]" * 90),
    "code": npy_header("__import__('os').system('ls')"),
    "not text": npy_header("\x00\xff"),
    "a header of a number": npy_header("1"),
    "nothing": npy_header(""),
    "npz bomb": npz_bomb,
    "npz of many": npz_of_many,
    "npz of no array": npz(b"hello", "a.txt"),
    "npz of an empty array": npz(b""),
    "npz of a damaged array": npz(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31)),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, NUMPY[name](tmp_path))


# --- PNG and JPEG -----------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0) -> Write:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    def write(folder: Path) -> Path:
        header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
        parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
        (folder / "i.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        return folder / "i.png"

    return write


def jpeg(width: int, height: int) -> Write:
    def write(folder: Path) -> Path:
        content = imagecodecs.jpeg_encode(np.zeros((8, 8), "u1"))
        at = content.index(b"\xff\xc0") + 5
        content = content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
        (folder / "i.jpg").write_bytes(content)
        return folder / "i.jpg"

    return write


def sparse_file(start: bytes) -> Write:
    def write(folder: Path) -> Path:
        with (folder / "i.png").open("wb") as file:
            file.write(start)
            file.truncate(10**11)
        return folder / "i.png"

    return write


RASTER: dict[str, Write] = {
    "a png of 10^12 pixels": png(10**6, 10**6, b""),
    "a png of 10^12 pixels and some": png(10**6, 10**6, bytes(10**7)),
    "a png of 10^10 bytes": png(50_000, 50_000, b"", 16, 2),
    "a png bomb": png(40_000, 40_000, bytes(10**7)),
    "a png that is wider than png": png(2**31 - 1, 1, b""),
    "a png of nothing": png(0, 0, b""),
    "a png of wrong bits": png(8, 8, bytes(72), 3),
    "a png of a sparse file": sparse_file(b"\x89PNG\r\n\x1a\n"),
    "a jpeg of a sparse file": sparse_file(b"\xff\xd8\xff"),
    "a jpeg of 4 * 10^9 pixels": jpeg(65_500, 65_500),
    "a jpeg of nothing": jpeg(0, 0),
}


@pytest.mark.parametrize("name", RASTER)
def test_raster(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, RASTER[name](tmp_path))


# --- TIFF -------------------------------------------------------------------------------------

WIDTH, LENGTH, BITS, COMPRESSION, SAMPLES, ROWS, COUNTS = 256, 257, 258, 259, 277, 278, 279
TILE_WIDTH, TILE_LENGTH = 322, 323


def tiff(tags: dict[int, Any] | None = None, next_page: int | None = None, **options: Any) -> Write:
    """A file whose tags and whose link to the next page were changed."""

    def write(folder: Path) -> Path:
        path = folder / "i.tif"
        tifffile.imwrite(path, np.zeros((32, 32), "u1"), metadata=None, **options)
        with tifffile.TiffFile(path, mode="r+") as file:
            page = file.pages[0]
            for code, value in (tags or {}).items():
                page.tags[code].overwrite(value, dtype=4 if isinstance(value, int) else None)
            at, offset = page.offset, 0
        if next_page is not None:
            content = bytearray(path.read_bytes())
            offset = at + 2 + 12 * int.from_bytes(content[at : at + 2], "little")
            content[offset : offset + 4] = struct.pack("<I", next_page or at)
            path.write_bytes(content)
        return path

    return write


def strips(count: int) -> Write:
    """A directory that lists strips without end."""

    def write(folder: Path) -> Path:
        path = tiff(rowsperstrip=1)(folder)
        content = bytearray(path.read_bytes())
        for tag in (273, 279):
            at = content.index(struct.pack("<HH", tag, 3 if tag == 279 else 4))
            content[at + 4 : at + 8] = struct.pack("<I", count)
        path.write_bytes(content)
        return path

    return write


def many_pages(folder: Path) -> Path:
    """Pages that are one and the same, each of which leads to another."""
    entries = struct.pack("<H", 0)
    pages = 200_000
    content = b"II*\0" + struct.pack("<I", 8)
    parts = [entries + struct.pack("<I", 8 + 6 * (number + 1)) for number in range(pages)]
    (folder / "i.tif").write_bytes(content + b"".join(parts))
    return folder / "i.tif"


def circle(count: int) -> Write:
    """Pages of which the last leads to the second."""

    def write(folder: Path) -> Path:
        path = folder / "i.tif"
        tifffile.imwrite(path, np.zeros((count, 2, 2), "u1"), metadata=None)
        with tifffile.TiffFile(path) as file:
            pages, end = [page.offset for page in file.pages], file.pages.next_page_offset
        with path.open("r+b") as file:
            file.seek(end)
            file.write(struct.pack("<I", pages[1]))
        return path

    return write


def imagej(images: int) -> Write:
    def write(folder: Path) -> Path:
        path = folder / "i.tif"
        tifffile.imwrite(path, np.zeros((3, 32, 32), "u1"), imagej=True)
        with tifffile.TiffFile(path) as file:
            said = file.pages[0].description
        tifffile.tiffcomment(path, said.replace("=3", f"={images}"))
        return path

    return write


def shaped(shape: tuple[int, ...]) -> Write:
    def write(folder: Path) -> Path:
        path = folder / "i.tif"
        tifffile.imwrite(path, np.zeros((3, 32, 32), "u1"), photometric="minisblack")
        tifffile.tiffcomment(path, json.dumps({"shape": shape}))
        return path

    return write


def ome_tiff(**said: str) -> Write:
    def write(folder: Path) -> Path:
        path = folder / "i.ome.tif"
        tifffile.imwrite(path, np.zeros((2, 32, 32), "u1"), metadata={"axes": "ZYX"})
        with tifffile.TiffFile(path) as file:
            xml = str(file.ome_metadata)
        for key, value in said.items():
            start = xml.index(f' {key}="') + len(key) + 3
            xml = xml[:start] + value + xml[xml.index('"', start) :]
        tifffile.tiffcomment(path, xml.encode())
        return path

    return write


def xml_bomb(folder: Path) -> Path:
    entities = "".join(
        f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' if n else '<!ENTITY a0 "ha">' for n in range(12)
    )
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [{entities}]><OME>&a11;</OME>'
    tifffile.imwrite(folder / "i.ome.tif", np.zeros((8, 8), "u1"), metadata=None, description=xml)
    return folder / "i.ome.tif"


TIFF: dict[str, Write] = {
    "wide": tiff({WIDTH: 2**31}),
    "wide and long": tiff({WIDTH: 2**31, LENGTH: 2**31, ROWS: 2**31}),
    "wide, long and packed": tiff({WIDTH: 2**31, LENGTH: 2**31, ROWS: 2**31}, compression="zlib"),
    "one large strip": tiff({WIDTH: 30_000, LENGTH: 60_000, ROWS: 60_000}, compression="zlib"),
    "a large tile": tiff(
        {WIDTH: 2**20, LENGTH: 2**20, TILE_WIDTH: 2**20, TILE_LENGTH: 2**20},
        tile=(16, 16),
        compression="zlib",
    ),
    "tiles of nothing": tiff({TILE_WIDTH: 0, TILE_LENGTH: 0}, tile=(16, 16)),
    "strips of nothing": tiff({ROWS: 0, LENGTH: 64}, compression="zlib"),
    "no width": tiff({WIDTH: 0}),
    "no bits": tiff({BITS: 0}),
    "many bits": tiff({BITS: 65_535}),
    "many samples": tiff({SAMPLES: 65_535}),
    "many samples, packed": tiff({SAMPLES: 65_535}, compression="zlib"),
    "a large strip": tiff({COUNTS: 2**32 - 1}),
    "an unknown compression": tiff({COMPRESSION: 65_000}, compression="zlib"),
    "strips without end": strips(2**31 - 1),
    "a next page that is the header": tiff(next_page=4),
    "a next page outside": tiff(next_page=2**31),
    "a page that is its own next": tiff(next_page=0),
    "pages in a circle": circle(2),
    "pages in a large circle": circle(5000),
    "many pages": many_pages,
    "imagej of many": imagej(10**9),
    "imagej of more": imagej(10**15),
    "shaped of many": shaped((10**9, 32, 32)),
    "shaped of less": shaped((-1, 32, 32)),
    "OME of many planes": ome_tiff(SizeZ="1000000000"),
    "OME of many channels": ome_tiff(SizeC="1000000000"),
    "OME of 10^36": ome_tiff(SizeX="1" + "0" * 36),
    "OME of no number": ome_tiff(SizeZ="a"),
    "OME below nothing": ome_tiff(SizeZ="-2"),
    "OME of another order": ome_tiff(DimensionOrder="QQQQQ"),
    "OME of the file that it names": ome_tiff(IFD="1000000000"),
    "xml bomb": xml_bomb,
}


@pytest.mark.usefixtures("quiet_tifffile")
@pytest.mark.parametrize("name", TIFF)
def test_tiff(name: str, tmp_path: Path) -> None:
    assert_refused(read_image, TIFF[name](tmp_path))
