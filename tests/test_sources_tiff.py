"""TIFF in all its kinds: slides, stacks, pyramids, and what is cut short."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from reading import RGB, as_5d, assert_reads, noise, opened, random_boxes, smooth, whole

from unet.errors import SourceError
from unet.planning.axes import ORDER
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.sources.levels import level_factor

pytestmark = pytest.mark.usefixtures("quiet_tifffile")


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
        with pytest.raises(SourceError, match="does not say what its dimension of length 5 is"):
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
