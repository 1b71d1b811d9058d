"""Every reader gives the pixels that were written, and refuses what it would have to guess."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from unet.errors import SourceError
from unet.geometry import Box
from unet.sources import open_source, source_files, watched_files
from unet.sources.base import ORDER, Source, SourceSpec
from unet.sources.image import level_factor

DATA = Path(__file__).parents[2] / "shared" / "data"
RNG = np.random.default_rng(0)
RGB = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _quiet_tifffile() -> Any:
    """tifffile logs what it finds wrong; here that is on purpose."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("tifffile").setLevel(logging.WARNING)


def noise(*shape: int, dtype: str = "uint8") -> Any:
    return RNG.integers(0, 256, shape).astype(dtype)


def smooth(height: int, width: int) -> Any:
    """RGB that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 2, x * 2, y + x], axis=-1).clip(0, 255).astype("uint8")


def as_5d(image: Any, axes: str) -> Any:
    """`image` on axes of "tczyxs" as (t, c, z, y, x), by numpy alone."""
    axes = axes if "c" in axes else axes.replace("s", "c")
    order = [axes.index(a) for a in "tcszyx" if a in axes]
    image = image.transpose(order)
    if "s" in axes:
        at = [a for a in "tcszyx" if a in axes].index("c")
        image = image.reshape(*image.shape[:at], -1, *image.shape[at + 2 :])
    return image[tuple(slice(None) if a in axes else None for a in ORDER)]


def whole(source: Source) -> Any:
    return source.read(Box((0, 0, 0, 0), (source.shape[0], *source.shape[2:])))


def random_boxes(shape: tuple[int, ...], count: int = 12) -> list[Box]:
    boxes = []
    for _ in range(count):
        ends = [sorted(RNG.choice(n + 1, 2, replace=False)) for n in (shape[0], *shape[2:])]
        boxes.append(Box(tuple(int(a) for a, _ in ends), tuple(int(b) for _, b in ends)))
    return boxes


def assert_reads(spec: SourceSpec, expected: Any, boxes: int = 12) -> Source:
    """The source has the shape, dtype and pixels of `expected`, in any box."""
    source = open_source(pickle.loads(pickle.dumps(spec)))
    assert source.shape == expected.shape
    assert source.dtype == expected.dtype
    assert len(source.chunks) == 5
    assert all(c >= 1 for c in source.chunks)
    assert len(source.channel_names) == expected.shape[1]
    np.testing.assert_array_equal(whole(source), expected)
    for box in random_boxes(source.shape, boxes):
        t, z, y, x = box.slices
        read = source.read(box)
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected[t, :, z, y, x])
    source.close()
    return source


def opened(path: Path | str, **options: Any) -> Source:
    source = open_source(SourceSpec(str(path), **options))
    source.close()
    return source


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real image {name} is not here")
    return path


# --- TIFF ---------------------------------------------------------------------------------------

TIFFS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "tiled": (noise(100, 130), "yx", {"tile": (32, 48)}),
    "tiled zlib": (noise(100, 130), "yx", {"tile": (32, 48), "compression": "zlib"}),
    "strips": (noise(100, 130, dtype="uint16"), "yx", {"rowsperstrip": 7}),
    "strips lzw": (noise(100, 130), "yx", {"rowsperstrip": 7, "compression": "lzw"}),
    "one strip zstd": (noise(100, 130), "yx", {"rowsperstrip": 100, "compression": "zstd"}),
    "predictor": (
        noise(100, 130, dtype="uint16"),
        "yx",
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
    ),
    "float predictor": (
        noise(50, 64, dtype="float32"),
        "yx",
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
    ),
    "float16": (noise(50, 64, dtype="float16"), "yx", {}),
    "big endian": (noise(40, 50, dtype="uint16"), "yx", {"byteorder": ">"}),
    "big endian tiled": (
        noise(40, 50, dtype="uint16"),
        "yx",
        {"byteorder": ">", "tile": (16, 16), "compression": "zlib"},
    ),
    "bigtiff": (noise(100, 130), "yx", {"bigtiff": True, "tile": (64, 64), "compression": "lzw"}),
    "bits": (noise(40, 50) > 100, "yx", {}),
    "rgb": (noise(60, 70, 3), "yxs", {"photometric": "rgb"}),
    "rgb tiled": (
        noise(60, 70, 3),
        "yxs",
        {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"},
    ),
    "rgba": (
        noise(60, 70, 4),
        "yxs",
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"},
    ),
    "planar rgb": (noise(3, 60, 70), "syx", {"photometric": "rgb", "planarconfig": "separate"}),
    "planar rgb tiled": (
        noise(3, 60, 70),
        "syx",
        {
            "photometric": "rgb",
            "planarconfig": "separate",
            "tile": (32, 32),
            "compression": "zlib",
        },
    ),
    "stack": (noise(9, 40, 50), "zyx", {"metadata": {"axes": "ZYX"}}),
    "stack zlib": (
        noise(9, 40, 50),
        "zyx",
        {"metadata": {"axes": "ZYX"}, "compression": "zlib", "rowsperstrip": 16},
    ),
    "rgb stack": (
        noise(4, 40, 50, 3),
        "zyxs",
        {"metadata": {"axes": "ZYXS"}, "compression": "zlib", "photometric": "rgb"},
    ),
    "volume tiles": (
        noise(20, 40, 50),
        "zyx",
        {"metadata": {"axes": "ZYX"}, "tile": (16, 32, 32), "compression": "zlib"},
    ),
    "5d": (
        noise(2, 3, 4, 30, 40),
        "tczyx",
        {"metadata": {"axes": "TCZYX"}, "tile": (16, 16), "compression": "zlib"},
    ),
    "other order": (noise(3, 4, 30, 40), "zcyx", {"metadata": {"axes": "ZCYX"}}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_boxes_equal_slices(tmp_path: Path, name: str) -> None:
    image, axes, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "i.tif", image, **({"photometric": "minisblack"} | options))
    source = assert_reads(SourceSpec(str(tmp_path / "i.tif")), as_5d(image, axes))
    assert source.axes == "".join(a for a in ORDER if a in axes.replace("s", "c"))


@pytest.mark.parametrize("ome", [False, True])
def test_separate_pages_need_axes(tmp_path: Path, ome: bool) -> None:
    image = noise(5, 40, 50)
    for compression in (None, "zlib"):
        path = tmp_path / f"{compression}.tif"
        with tifffile.TiffWriter(path) as writer:
            for plane in image:
                writer.write(
                    plane, metadata=None, compression=compression, photometric="minisblack"
                )
        assert_reads(
            SourceSpec(str(path), axes="tyx" if ome else "zyx"),
            as_5d(image, "tyx" if ome else "zyx"),
        )
        with pytest.raises(SourceError, match="does not say what its axis"):
            opened(path)


def test_chunks_are_the_pieces_that_decode_alone(tmp_path: Path) -> None:
    tiled, strips, raw = (tmp_path / f"{n}.tif" for n in ("tiled", "strips", "raw"))
    image = noise(60, 70, 3)
    tifffile.imwrite(tiled, image, photometric="rgb", tile=(32, 16), compression="zlib")
    tifffile.imwrite(strips, image, photometric="rgb", rowsperstrip=8, compression="zlib")
    tifffile.imwrite(raw, image, photometric="rgb")
    assert opened(tiled).chunks == (1, 3, 1, 32, 16)
    assert opened(tiled, channels=(0,)).chunks == (1, 1, 1, 32, 16)
    assert opened(strips).chunks == (1, 3, 1, 8, 70)
    assert opened(raw).chunks == (1, 1, 1, 1, 1)


def test_jpeg_tiles_equal_tifffile(tmp_path: Path) -> None:
    path = tmp_path / "i.tif"
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64)}
    tifffile.imwrite(path, smooth(100, 120), compression="jpeg", **options)
    assert_reads(SourceSpec(str(path)), as_5d(tifffile.imread(path), "yxs"))


def test_imagej_hyperstack(tmp_path: Path) -> None:
    path, image = tmp_path / "i.tif", noise(2, 3, 4, 30, 40, dtype="uint16")
    metadata = {
        "axes": "TZCYX",
        "unit": "um",
        "spacing": 3.0,
        "Labels": ["DAPI", "GFP", "RFP", "PC"] * 6,
    }
    tifffile.imwrite(path, image, imagej=True, resolution=(4.0, 2.0), metadata=metadata)
    expected = as_5d(image, "tzcyx")
    source = assert_reads(SourceSpec(str(path)), expected)
    assert source.axes == "tczyx"
    assert source.pixel_size == pytest.approx({"x": 0.25, "y": 0.5, "z": 3.0})
    assert source.channel_names == ("DAPI", "GFP", "RFP", "PC")
    assert_reads(SourceSpec(str(path), channels=("gfp", 3, 0)), expected[:, [1, 3, 0]])


def test_imagej_virtual_stack_of_one_page(tmp_path: Path) -> None:
    path, image = tmp_path / "i.tif", noise(6, 30, 40)
    tifffile.imwrite(path, image, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:  # cut the chain after the first page, as ImageJ writes it
        start = tif.pages[0].offset + 2 + 12 * len(tif.pages[0].tags)
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    assert_reads(SourceSpec(str(path)), as_5d(image, "zyx"))


def write_ome(path: Path) -> list[Any]:
    """A pyramid of three levels with three named channels; returns the levels."""
    levels = [noise(3, 121, 150)]
    levels += [levels[0][:, ::2, ::2], levels[0][:, ::4, ::4]]
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["DAPI", "1", "CD3"]},
    }
    options: dict[str, Any] = {
        "photometric": "minisblack",
        "tile": (32, 32),
        "compression": "zlib",
    }
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], subifds=2, metadata=metadata, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    return levels


def test_ome_tiff_levels_and_channels(tmp_path: Path) -> None:
    path = tmp_path / "i.ome.tif"
    levels = write_ome(path)
    for number, level in enumerate(levels):
        source = assert_reads(SourceSpec(str(path), level=number), as_5d(level, "cyx"))
        size = {"x": 0.25 * 2**number, "y": 0.5 * 2**number}
        assert source.pixel_size == pytest.approx(size)
        assert source.channel_names == ("DAPI", "1", "CD3")
    cd3 = assert_reads(
        SourceSpec(str(path), channels=("cd3", 0, 0)), as_5d(levels[0][[2, 0, 0]], "cyx")
    )
    assert cd3.channel_names == ("CD3", "DAPI", "DAPI")


@pytest.mark.parametrize(
    ("wanted", "level"), [(0.1, 0), (0.3, 0), (0.4, 1), (0.6, 1), (0.9, 2), (50.0, 2)]
)
def test_level_by_pixel_size(tmp_path: Path, wanted: float, level: int) -> None:
    path = tmp_path / "i.ome.tif"
    shape = write_ome(path)[level].shape
    source = opened(path, level_pixel_size=wanted)
    assert source.shape[3:] == shape[1:]
    # the size in the configuration is that of level 0, and goes over the file's
    halved = opened(path, level_pixel_size=wanted / 2, pixel_size={"x": 0.125, "z": 2.0})
    assert halved.shape == source.shape
    assert halved.pixel_size["x"] == pytest.approx(0.125 * 2**level)
    assert "z" not in halved.pixel_size


def test_level_factor_is_whole_where_rounding_explains_it() -> None:
    assert level_factor(2967, 1483) == level_factor(2967, 1484) == 2.0
    assert level_factor(1000, 7) == 128.0
    assert level_factor(900, 300) == 3.0
    assert level_factor(1000, 400) == 2.5
    assert level_factor(100, 100) == 1.0
    assert level_factor(100, 200) == 0.5


def test_ome_rgb_pyramid(tmp_path: Path) -> None:
    path, image = tmp_path / "i.ome.tif", noise(100, 120, 3)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(image, subifds=1, metadata={"axes": "YXS"}, **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
    assert assert_reads(SourceSpec(str(path)), as_5d(image, "yxs")).channel_names == RGB
    assert_reads(SourceSpec(str(path), level=1), as_5d(image[::2, ::2], "yxs"))


def test_ome_channels_of_samples(tmp_path: Path) -> None:
    path, image = tmp_path / "i.ome.tif", noise(2, 40, 50, 3)
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        metadata={"axes": "CYXS", "Channel": {"Name": ["a", "b"]}},
        compression="zlib",
    )
    expected = as_5d(image, "cyxs")
    source = assert_reads(SourceSpec(str(path)), expected)
    assert source.channel_names == tuple(f"{g} {c}" for g in "ab" for c in RGB)
    assert_reads(SourceSpec(str(path), channels=("b green", 0)), expected[:, [4, 0]])


OME_FILES = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="50" SizeY="40"
SizeC="1" SizeZ="2" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>
<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:a</UUID></TiffData>
<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:b</UUID></TiffData>
</Pixels></Image></OME>"""


def test_ome_of_several_files(tmp_path: Path) -> None:
    image = noise(2, 40, 50)
    for name, plane in zip("ab", image, strict=True):
        text = OME_FILES.replace('UUID="urn:uuid:a"', f'UUID="urn:uuid:{name}"')
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", plane, metadata=None, description=text, compression="zlib"
        )
    assert_reads(SourceSpec(str(tmp_path / "a.ome.tif")), as_5d(image, "zyx"))
    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(SourceError, match="one of the files it names is missing"):
        opened(tmp_path / "a.ome.tif")


def write_pages(path: Path, pages: list[tuple[Any, dict[str, Any]]], **options: Any) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page, own in pages:
            writer.write(page, metadata=None, **(options | own))


def test_aperio_slide(tmp_path: Path) -> None:
    path, image = tmp_path / "i.svs", noise(256, 320, 3)
    text = "Aperio Image Library v11\r\n320x256 (64x64)|AppMag = 20|MPP = 0.4990|Left = 2"
    tiled = {"tile": (64, 64)}
    pages = [
        (image, tiled | {"description": text}),
        (image[::8, ::8], {"description": "Aperio thumbnail"}),
        (image[::2, ::2], tiled | {"description": "Aperio"}),
        (image[::4, ::4], tiled | {"description": "Aperio"}),
    ]
    write_pages(path, pages, photometric="rgb", compression="zlib")
    source = assert_reads(
        SourceSpec(str(path), level_pixel_size=2.0), as_5d(image[::4, ::4], "yxs")
    )
    assert source.pixel_size == pytest.approx({"x": 1.996, "y": 1.996})
    assert source.channel_names == RGB


SCN = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="a"><image name="macro"><pixels><dimension r="0" ifd="0"/></pixels></image>
<image name="slide"><pixels><dimension r="0" ifd="1"/><dimension r="1" ifd="2"/></pixels></image>
</collection></scn>"""


def test_leica_slide_is_not_its_macro(tmp_path: Path) -> None:
    path, image = tmp_path / "i.scn", noise(128, 192, 3)
    pages = [(image[::8, ::8], {"description": SCN}), (image, {}), (image[::4, ::4], {})]
    per_cm = (20000.0, 20000.0)
    write_pages(
        path,
        pages,
        photometric="rgb",
        compression="zlib",
        tile=(64, 64),
        resolution=per_cm,
        resolutionunit="CENTIMETER",
    )
    assert assert_reads(SourceSpec(str(path)), as_5d(image, "yxs")).pixel_size == {
        "x": 0.5,
        "y": 0.5,
    }
    low = assert_reads(SourceSpec(str(path), level=1), as_5d(image[::4, ::4], "yxs"))
    assert low.pixel_size == {"x": 2.0, "y": 2.0}


def test_qptiff_channels(tmp_path: Path) -> None:
    path, image = tmp_path / "i.qptiff", noise(2, 128, 192)
    named = [
        {
            "description": f"<PerkinElmer-QPI-ImageDescription><Name>{n}</Name>"
            "</PerkinElmer-QPI-ImageDescription>"
        }
        for n in ("DAPI", "CD8")
    ]
    pages = [(plane, own) for plane, own in zip(image, named, strict=True)]
    pages += [(noise(20, 30, 3), {"photometric": "rgb", "tile": None})]
    pages += [(plane[::2, ::2], own) for plane, own in zip(image, named, strict=True)]
    options = {
        "photometric": "minisblack",
        "software": "PerkinElmer-QPI",
        "tile": (64, 64),
        "compression": "zlib",
    }
    write_pages(path, pages, **options, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    source = assert_reads(SourceSpec(str(path), level=1), as_5d(image[:, ::2, ::2], "cyx"))
    assert source.channel_names == ("DAPI", "CD8")
    assert source.pixel_size == {"x": 1.0, "y": 1.0}
    assert_reads(SourceSpec(str(path), channels=("cd8",)), as_5d(image[1:], "cyx"))


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((40000, 20000), "CENTIMETER", {"x": 0.25, "y": 0.5}),
        ((25400, 25400), "INCH", {"x": 1.0, "y": 1.0}),
        ((72, 72), "INCH", {}),
        ((300, 300), "INCH", {}),
        ((118, 118), "CENTIMETER", {}),
        ((40000, 40000), "NONE", {}),
    ],
)
def test_a_plain_files_resolution(
    tmp_path: Path, resolution: tuple[int, int], unit: str, size: dict[str, float]
) -> None:
    path = tmp_path / "i.tif"
    tifffile.imwrite(path, noise(10, 10), resolution=resolution, resolutionunit=unit, metadata=None)
    assert opened(path).pixel_size == pytest.approx(size)


def test_absent_tiles_are_background(tmp_path: Path) -> None:
    path, tile = tmp_path / "i.tif", noise(32, 32, dtype="uint16")
    blobs = iter([b"", imagecodecs.zlib_encode(tile.tobytes()), b"", b""])
    options: dict[str, Any] = {"shape": (64, 64), "dtype": "uint16", "tile": (32, 32)}
    tifffile.imwrite(path, blobs, compression="zlib", metadata=None, **options)
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].databytecounts[0] == 0
    expected = np.zeros((64, 64), "uint16")
    expected[:32, 32:] = tile
    assert_reads(SourceSpec(str(path)), as_5d(expected, "yx"))
    tifffile.imwrite(path, noise(64, 64, dtype="uint16"), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["StripOffsets"].overwrite(0)
    assert_reads(SourceSpec(str(path)), as_5d(np.zeros_like(expected), "yx"))


@pytest.mark.parametrize("name", ["strips lzw", "planar rgb tiled", "5d", "stack"])
def test_threads_read_one_source_at_once(tmp_path: Path, name: str) -> None:
    image, axes, options = TIFFS[name]
    path = tmp_path / "i.tif"
    tifffile.imwrite(path, image, **({"photometric": "minisblack"} | options))
    expected = as_5d(image, axes)
    source = open_source(SourceSpec(str(path)))
    boxes = random_boxes(source.shape, 100)
    with ThreadPoolExecutor(8) as pool:
        for box, read in zip(boxes, pool.map(source.read, boxes), strict=True):
            t, z, y, x = box.slices
            np.testing.assert_array_equal(read, expected[t, :, z, y, x])
    source.close()


def write_any(path: Path, kind: str) -> None:
    image, rgb = noise(4, 60, 70), noise(60, 70, 3)
    gray: dict[str, Any] = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(rgb))
    elif kind == "jpg":
        path.write_bytes(imagecodecs.jpeg_encode(rgb))
    elif kind == "npy":
        np.save(path, image[0])
    elif kind == "ome.tif":
        write_ome(path)
    elif kind == "imagej.tif":
        tifffile.imwrite(path, image, imagej=True, metadata={"axes": "ZYX"})
    elif kind == "pages.tif":
        write_pages(path, [(p, {}) for p in rgb.transpose(2, 0, 1)], compression="zlib")
    elif kind == "raw.tif":
        tifffile.imwrite(path, image, **gray)
    elif kind == "rgb.tif":
        tifffile.imwrite(path, rgb, compression="jpeg", tile=(32, 32), photometric="rgb")
    else:
        tifffile.imwrite(path, image, compression="zlib", tile=(32, 32), **gray)


@pytest.mark.parametrize(
    "kind",
    ["png", "jpg", "npy", "ome.tif", "imagej.tif", "pages.tif", "raw.tif", "rgb.tif", "z.tif"],
)
def test_a_file_cut_short_is_an_error_never_a_black_square(tmp_path: Path, kind: str) -> None:
    good, cut = tmp_path / f"good.{kind}", tmp_path / f"cut.{kind}"
    write_any(good, kind)
    axes = "zyx" if kind == "pages.tif" else None
    source = open_source(SourceSpec(str(good), axes=axes))
    expected = whole(source)
    source.close()
    data = good.read_bytes()
    refused = []
    for length in np.linspace(1, len(data) - 1, 40).astype(int):
        cut.write_bytes(data[:length])
        try:
            with closing(open_source(SourceSpec(str(cut), axes=axes))) as part:
                np.testing.assert_array_equal(whole(part), expected)  # only padding was cut
        except SourceError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(str(cut) in message for message in refused)


# --- slices, PNG, JPEG, npy ---------------------------------------------------------------------


def test_png_and_jpeg(tmp_path: Path) -> None:
    png, jpeg = tmp_path / "i.png", tmp_path / "i.jpg"
    for image, axes in (
        (noise(30, 40), "yx"),
        (noise(30, 40, dtype="uint16") * 200, "yx"),
        (noise(30, 40, 3), "yxs"),
        (noise(30, 40, 4), "yxs"),
    ):
        png.write_bytes(imagecodecs.png_encode(image))
        assert_reads(SourceSpec(str(png)), as_5d(image, axes))
    jpeg.write_bytes(imagecodecs.jpeg_encode(smooth(30, 40)))
    source = assert_reads(
        SourceSpec(str(jpeg)), as_5d(imagecodecs.jpeg_decode(jpeg.read_bytes()), "yxs")
    )
    assert source.channel_names == RGB
    assert source.chunks == (1, 3, 1, 30, 40)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_slices_in_natural_order(tmp_path: Path, suffix: str) -> None:
    image = noise(12, 30, 40)
    for number, plane in enumerate(image):
        path = tmp_path / f"slice_{number}.{suffix}"
        if suffix == "tif":
            tifffile.imwrite(path, plane, resolution=(5e4, 5e4), resolutionunit="CENTIMETER")
        else:
            path.write_bytes(imagecodecs.png_encode(plane))
    (tmp_path / "notes.txt").write_text("not a slice")
    files = [str(tmp_path / f"slice_{i}.{suffix}") for i in range(12)]
    assert source_files(str(tmp_path)) == files
    assert source_files(str(tmp_path / f"slice_?.{suffix}")) == files[:10]
    source = assert_reads(SourceSpec(str(tmp_path), pixel_size={"z": 2.0}), as_5d(image, "zyx"))
    size = {"z": 2.0} | ({"y": 0.2, "x": 0.2} if suffix == "tif" else {})
    assert source.pixel_size == pytest.approx(size)
    assert source.chunks[2] == 1
    glob = str(tmp_path / f"*_1*.{suffix}")
    assert_reads(SourceSpec(glob), as_5d(image[[1, 10, 11]], "zyx"))
    assert_reads(SourceSpec(glob, axes="tyx"), as_5d(image[[1, 10, 11]], "tyx"))
    assert_reads(SourceSpec(glob, axes="cyx", channels=(2,)), as_5d(image[[11]], "cyx"))


def test_a_slice_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(3, 20, 30)
    for i, plane in enumerate(image):
        (tmp_path / f"{i}.png").write_bytes(imagecodecs.png_encode(plane))
    decoded: list[int] = []

    def counted(data: bytes) -> Any:
        decoded.append(len(data))
        return decode(data)

    decode = imagecodecs.png_decode
    source = opened(tmp_path)
    monkeypatch.setattr(imagecodecs, "png_decode", counted)
    for _ in range(2):
        assert np.array_equal(whole(source)[0, 0], image)
    assert len(decoded) == 2 * len(image)


def test_slices_of_rgb_and_of_stacks(tmp_path: Path) -> None:
    image = noise(3, 20, 30, 3)
    for i, plane in enumerate(image):
        (tmp_path / f"{i}.png").write_bytes(imagecodecs.png_encode(plane))
        tifffile.imwrite(tmp_path / f"{i}.tif", plane, metadata={"axes": "ZYX"},
                         photometric="minisblack", compression="zlib")  # fmt: skip
    assert_reads(
        SourceSpec(str(tmp_path / "*.png"), channels=("blue",)), as_5d(image, "zyxs")[:, 2:]
    )
    assert_reads(SourceSpec(str(tmp_path / "*.tif"), axes="tzyx"), as_5d(image, "tzyx"))
    with pytest.raises(SourceError, match="axes 'zyx' of its own"):
        opened(tmp_path / "*.tif")


def test_a_slice_that_differs_is_named(tmp_path: Path) -> None:
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", noise(20, 30 + (i == 2)))
    source = open_source(SourceSpec(str(tmp_path)))
    source.read(Box((0, 0, 0, 0), (1, 2, 20, 30)))
    with pytest.raises(SourceError, match=r"2\.tif has shape \(20, 31\)"):
        whole(source)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, order: str) -> None:
    path, image = tmp_path / "i.npy", noise(4, 3, 30, 40, dtype=">i2")
    np.save(path, np.asarray(image, order=order))
    expected = as_5d(image.astype("int16"), "zcyx")
    assert_reads(SourceSpec(str(path), axes="zcyx", pixel_size={"x": 0.5}), expected)
    assert_reads(SourceSpec(str(path), axes="zcyx", channels=(2, 0)), expected[:, [2, 0]])
    np.save(path, np.asarray(image[0, 0], order=order) > 9)
    assert_reads(SourceSpec(str(path)), as_5d(image[0, 0] > 9, "yx"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    image = noise(3, 30, 40, dtype=">i2")
    save(tmp_path / "i.npz", labels=image)
    expected = as_5d(image.astype("int16"), "zyx")
    assert_reads(SourceSpec(str(tmp_path / "i.npz"), axes="zyx"), expected)


# --- Zarr ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr(tmp_path: Path, version: int) -> None:
    path, image = tmp_path / "i.zarr", noise(3, 40, 50, dtype="uint16")
    options: dict[str, Any] = {"shards": (3, 32, 32)} if version == 3 else {}
    names = ["z", "y", "x"] if version == 3 else None
    zarr.create_array(
        path, data=image, chunks=(1, 16, 16), zarr_format=version, dimension_names=names, **options
    )  # fmt: skip
    axes = None if version == 3 else "zyx"
    source = assert_reads(SourceSpec(str(path), axes=axes), as_5d(image, "zyx"))
    assert source.chunks == (1, 1, 1, 16, 16)
    assert source.in_place is not None
    assert (source.in_place.store, source.in_place.array) == (str(path), "")
    assert (source.in_place.axes, source.in_place.channels) == ("zyx", (0,))
    assert_reads(SourceSpec(str(path), axes="cyx", channels=(2, 0)), as_5d(image[[2, 0]], "cyx"))
    assert source_files(str(path)) == [
        str(path / name) for name in (["zarr.json"] if version == 3 else [".zattrs", ".zarray"])
    ]


def write_ome_zarr(path: Path, version: int, levels: list[Any], axes: str) -> None:
    """OME-Zarr 0.4 (Zarr v2) or 0.5 (Zarr v3), with y and x halved from level to level."""
    group = zarr.create_group(path, zarr_format=version)
    kinds = {"t": "time", "c": "channel"}
    units = {"z": "micrometer", "y": "nanometer", "x": "nanometer"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": units[a]} if a in units else {})
        for a in axes
    ]
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(f"s{number}", data=level, chunks=(1,) * (level.ndim - 2) + (16, 16))
        sizes = {"z": 2.0, "y": 300.0 * 2**number, "x": 250.0 * 2**number}
        scale = {"type": "scale", "scale": [sizes.get(a, 1.0) for a in axes]}
        datasets.append({"path": f"s{number}", "coordinateTransformations": [scale]})
    metadata = {
        "multiscales": [{"axes": described, "datasets": datasets, "version": "0.4"}],
        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]},
    }
    group.attrs.update(metadata if version == 2 else {"ome": metadata | {"version": "0.5"}})


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path: Path, version: int) -> None:
    path, image = tmp_path / "i.zarr", noise(2, 3, 40, 50)
    write_ome_zarr(path, version, [image, image[..., ::2, ::2]], "czyx")
    assert assert_reads(SourceSpec(str(path)), as_5d(image, "czyx")).axes == "czyx"
    source = assert_reads(
        SourceSpec(str(path), level_pixel_size=0.45, channels=("gfp",)),
        as_5d(image[1:, :, ::2, ::2], "czyx"),
    )
    assert source.pixel_size == pytest.approx({"z": 2.0, "y": 0.6, "x": 0.5})
    assert source.channel_names == ("GFP",)
    assert source.in_place is not None
    assert (source.in_place.store, source.in_place.array) == (str(path), "s1")
    assert (source.in_place.axes, source.in_place.channels) == ("czyx", (1,))


def test_bioformats2raw_layout(tmp_path: Path) -> None:
    path, image = tmp_path / "i.zarr", noise(2, 40, 50)
    zarr.create_group(path, zarr_format=2, attributes={"bioformats2raw.layout": 3})
    write_ome_zarr(path / "0", 2, [image], "cyx")
    source = assert_reads(SourceSpec(str(path)), as_5d(image, "cyx"))
    assert source.in_place is not None
    assert source.in_place.array == "0/s0"


def test_of_a_zarr_the_folders_of_chunks_are_watched(tmp_path: Path) -> None:
    """Of many chunks their folders alone, of very many folders the upper ones: never more."""
    path = tmp_path / "image.zarr"
    zarr.create_array(path, data=np.ones((30, 40), "u1"), chunks=(10, 10))
    folders = [path, path / "c", *(path / "c" / str(y) for y in range(3))]
    chunks = [path / "c" / str(y) / str(x) for y in range(3) for x in range(4)]
    metadata = [path / "zarr.json"]
    for most, watched in (
        (18, metadata + folders + chunks),
        (17, metadata + folders),
        (6, metadata + folders),
        (4, metadata + folders[:3]),
    ):
        assert watched_files(str(path), most) == list(map(str, watched)), most
    assert watched_files("s3://bucket/image.zarr", 100) == []


def test_missing_zarr_chunks_are_fill_and_damaged_ones_an_error(tmp_path: Path) -> None:
    path, image = tmp_path / "i.zarr", noise(32, 32)
    zarr.create_array(path, data=image, chunks=(16, 16))
    (path / "c" / "0" / "0").unlink()
    image[:16, :16] = 0
    assert_reads(SourceSpec(str(path)), as_5d(image, "yx"))
    (path / "c" / "0" / "1").write_bytes(b"damaged")
    source = open_source(SourceSpec(str(path)))
    with pytest.raises(SourceError, match="A chunk is damaged"):
        whole(source)


# --- What is refused, and in which words --------------------------------------------------------


def bad_dtype(dtype: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.save(folder / "i.npy", np.zeros((4, 4), dtype))
        return str(folder / "i.npy")

    return write


def array(shape: tuple[int, ...]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.save(folder / "i.npy", np.zeros(shape, "uint8"))
        return str(folder / "i.npy")

    return write


def npz(**arrays: np.ndarray) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.savez(folder / "i.npz", **arrays)
        return str(folder / "i.npz")

    return write


def file(name: str, content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def tiff(image: Any, name: str = "i.tif", **options: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        tifffile.imwrite(folder / name, image, **options)
        return str(folder / name)

    return write


def mixed_folder(folder: Path) -> str:
    (folder / "a.png").touch()
    (folder / "b.tif").touch()
    return str(folder)


def zarr_group(**attributes: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        group = zarr.create_group(folder / "i.zarr", zarr_format=2, attributes=attributes)
        group.create_array("raw", shape=(4, 4), dtype="uint8")
        return str(folder / "i.zarr")

    return write


def ome_zarr(axes: str, **options: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        write_ome_zarr(folder / "i.zarr", 3, [noise(2, 20, 20)], axes, **options)
        return str(folder / "i.zarr")

    return write


def lost_level(folder: Path) -> str:
    path = ome_zarr("cyx")(folder)
    (Path(path) / "s0" / "zarr.json").unlink()
    return path


def wrong_scale(folder: Path) -> str:
    path = Path(ome_zarr("cyx")(folder)) / "zarr.json"
    metadata = json.loads(path.read_text())
    dataset = metadata["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    dataset["coordinateTransformations"][0]["scale"] = [1.0]
    path.write_text(json.dumps(metadata))
    return str(path.parent)


PLANES = {"metadata": None, "photometric": "minisblack"}
BAD: dict[str, tuple[Callable[[Path], str], dict[str, Any], str]] = {
    "missing": (lambda p: str(p / "no.tif"), {}, "does not exist"),
    "empty folder": (lambda p: str(p), {}, "holds neither Zarr metadata nor TIFF, PNG or JPEG"),
    "mixed folder": (mixed_folder, {}, "holds PNG and TIFF files"),
    "empty glob": (lambda p: str(p / "*.tif"), {}, "matches no file"),
    "text": (file("i.tif", b"hello world"), {}, "is not an image this project reads"),
    "empty file": (file("i.tif", b""), {}, "is not an image this project reads"),
    "damaged tiff": (file("i.tif", b"II*\0\x08\0\0\0"), {}, "cannot be read as one"),
    "damaged png": (file("i.png", b"\x89PNG\r\n\x1a\n123"), {}, "cannot be decoded"),
    "damaged npy": (file("i.npy", b"\x93NUMPY\x01\0"), {}, "is not a .npy file of plain numbers"),
    "damaged npz": (file("i.npz", b"PK\x03\x04" + bytes(9)), {}, "is not an .npz file of plain"),
    "two arrays": (npz(a=np.zeros(4), b=np.zeros(4)), {}, r"Expected one array .* got 2 \(a, b\)"),
    "npz of objects": (npz(a=np.array([None])), {}, "or holds Python objects"),
    "objects": (bad_dtype("object"), {}, "or holds Python objects"),
    "complex": (bad_dtype("complex64"), {}, "holds complex64 values; expected"),
    "structured": (bad_dtype("u1,f4"), {}, "values; expected booleans, integers or floats"),
    "strings": (bad_dtype("U3"), {}, "holds <U3 values; expected"),
    "long double": (bad_dtype("longdouble"), {}, "holds float128 values; expected"),
    "complex tiff": (tiff(np.zeros((4, 4), "complex64")), {}, "holds complex64 values; expected"),
    "no pixels": (array((0, 4)), {}, r"holds no pixels: its shape is \(0, 4\)"),
    "npy without axes": (array((2, 4, 4)), {}, "does not say which is which. Set axes"),
    "too few axes": (array((2, 4, 4)), {"axes": "yx"}, "axes 'yx' name 2 dimensions"),
    "axis twice": (array((2, 4, 4)), {"axes": "yyx"}, "are not understood"),
    "unknown axis": (array((2, 4, 4)), {"axes": "qyx"}, "are not understood"),
    "no plane": (array((2, 4, 4)), {"axes": "tzy"}, "are not understood"),
    "tiff without axes": (tiff(noise(3, 8, 8), **PLANES), {}, "does not say what its axis 'I'"),
    "too many tiff axes": (
        tiff(noise(3, 8, 8), **PLANES),
        {"axes": "tczyx"},
        r"axes 'tczyx' name 5 dimensions, but the image has 'IYX' of shape \(3, 8, 8\)",
    ),
    "xyz": (tiff(noise(3, 8, 8), **PLANES), {"axes": "xyz"}, "In TIFF each plane is y, x"),
    "rgb as z": (
        tiff(noise(8, 8, 3), photometric="rgb"),
        {"axes": "zyx"},
        "axes 'zyx' do not fit its dimensions",
    ),
    "png axes": (
        file("i.png", imagecodecs.png_encode(noise(8, 8, 3))),
        {"axes": "zyx"},
        "do not fit a PNG or JPEG image",
    ),
    "level": (tiff(noise(8, 8)), {"level": 1}, "has no level 1: it has 1, counted from 0"),
    "negative level": (tiff(noise(8, 8)), {"level": -1}, "has no level -1"),
    "level twice": (tiff(noise(8, 8)), {"level": 0, "level_pixel_size": 1.0}, "are both set"),
    "no pixel size": (
        tiff(noise(8, 8)),
        {"level_pixel_size": 0.5},
        "does not say how large its pixels are",
    ),
    "channel name": (
        tiff(noise(8, 8, 3), photometric="rgb"),
        {"channels": ("DAPI",)},
        "has no channel 'DAPI'; its channels are 0: red, 1: green, 2: blue",
    ),
    "channel index": (tiff(noise(8, 8)), {"channels": (1,)}, "has no channel 1; its channels"),
    "negative channel": (tiff(noise(8, 8)), {"channels": (-1,)}, "has no channel -1"),
    "no channels": (tiff(noise(8, 8)), {"channels": ()}, "channels is empty"),
    "same name": (
        tiff(
            noise(2, 8, 8),
            "i.ome.tif",
            photometric="minisblack",
            metadata={"axes": "CYX", "Channel": {"Name": ["A", "a"]}},
        ),
        {"channels": ("A",)},
        "has 2 channels called 'A'",
    ),
    "zarr group": (zarr_group(), {}, "is a Zarr group without multiscales.* It contains raw"),
    "plate": (zarr_group(plate={}), {}, "is a plate of images"),
    "zarr axes": (ome_zarr("qyx"), {}, "axes 'qyx' are not understood"),
    "lost level": (lost_level, {}, "Zarr cannot open 's0'"),
    "wrong scale": (wrong_scale, {}, "are not as the format says"),
    "damaged zarr": (
        lambda p: str(Path(file("zarr.json", b"{")(p)).parent),
        {},
        "metadata are missing or damaged",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    write, options, message = BAD[name]
    path = write(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        opened(path, **options)
    assert path in str(caught.value)
    assert re.search(r"[.)]$", str(caught.value))


def test_a_box_outside_the_image_is_a_bug(tmp_path: Path) -> None:
    source = open_source(SourceSpec(array((4, 4))(tmp_path)))
    for start, stop in (((0, 0, 0, 0), (1, 1, 4, 5)), ((0, 0, 2, 0), (1, 1, 2, 4))):
        with pytest.raises(ValueError, match="not inside an image"):
            source.read(Box(start, stop))


# --- Real images --------------------------------------------------------------------------------


def test_real_svs_equals_tifffile() -> None:
    path = real("wsi/CMU-1-Small-Region.svs")
    source = assert_reads(SourceSpec(str(path)), as_5d(tifffile.imread(path), "yxs"), boxes=4)
    assert source.pixel_size == {"y": 0.499, "x": 0.499}
    assert source.channel_names == RGB
    assert source.chunks == (1, 3, 1, 240, 240)


def test_real_ndpi_level() -> None:
    path = real("wsi/test3-DAPI.ndpi")
    with tifffile.TiffFile(path) as tif:
        expected = as_5d(tif.series[0].levels[2].asarray(), "yxs")
    source = assert_reads(SourceSpec(str(path), level=2), expected, boxes=4)
    assert source.pixel_size["x"] == pytest.approx(4 * 10000 / 43826)
    near = opened(path, level_pixel_size=0.9)
    assert near.shape == source.shape


def test_real_ome_zarr_equals_its_tiff() -> None:
    folder = real("ome_zarr")
    stem = str(folder / "xyz_8bit__mitotic_plate_calibrated")
    tif, image = (
        open_source(SourceSpec(f"{stem}.tiff")),
        open_source(SourceSpec(f"{stem}.ome.zarr")),
    )
    np.testing.assert_array_equal(whole(tif), whole(image))
    tif.close()
    assert tif.pixel_size == pytest.approx(image.pixel_size)
    assert image.in_place is not None
    assert image.in_place.array == "0/0"


@pytest.mark.parametrize("name", ["2d", "3d", "5d"])
def test_real_zarr_versions_agree(name: str) -> None:
    folder = real("ome_zarr/scijava_synthetic")
    for level in (0, 1):
        old, new = (
            open_source(SourceSpec(str(folder / f"{name}_dataset_v{v}.ome.zarr"), level=level))
            for v in (4, 5)
        )
        np.testing.assert_array_equal(whole(old), whole(new))
        assert old.channel_names == new.channel_names
        assert old.axes == new.axes


def test_real_stack() -> None:
    path = real("cells3d_nuclei/nuclei.tif")
    size = {"z": 0.29, "y": 0.26, "x": 0.26}
    expected = as_5d(tifffile.imread(path), "zyx")
    source = assert_reads(SourceSpec(str(path), axes="zyx", pixel_size=size), expected)
    assert source.pixel_size == size


def test_real_png_slices() -> None:
    path = real("dsb2018_subset/images")
    source = opened(sorted(path.glob("*.png"))[0])
    assert source.channel_names == (*RGB, "alpha")
