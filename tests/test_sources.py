"""Every reader gives the pixels that were written: slices, .npy, Zarr, and real images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from reading import RGB, as_5d, assert_reads, noise, opened, real, smooth, whole, write_ome_zarr

from unet.errors import SourceError
from unet.planning.geometry import Box
from unet.sources import file_signature, open_source, source_files
from unet.sources.base import SourceSpec

pytestmark = pytest.mark.usefixtures("quiet_tifffile")


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


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"another")


def replaced_by_an_older(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, ns=(0, 1))
    new.replace(path)


@pytest.mark.parametrize("change", [in_place, replaced_by_an_older, Path.unlink])
@pytest.mark.parametrize("file", ["c/1/2", "c/0/0"])
def test_an_image_looks_different_when_any_file_changed(tmp_path: Path, file, change) -> None:
    path = tmp_path / "image.zarr"
    zarr.create_array(path, data=noise(30, 40), chunks=(10, 10))
    (path / "c" / "gone").symlink_to("nowhere")
    before = file_signature(str(path), 100)
    assert file_signature(str(path), 100) == before
    change(path / file)
    assert file_signature(str(path), 100) != before


def test_of_very_many_chunks_their_folders_are_looked_at(tmp_path: Path) -> None:
    """6 are the image, its metadata, `c` and three folders of chunks in it."""
    path = tmp_path / "image.zarr"
    zarr.create_array(path, data=noise(30, 40), chunks=(10, 10))
    before = file_signature(str(path), 6), file_signature(str(path), 3)
    replaced_by_an_older(path / "c/1/2")
    assert file_signature(str(path), 6) != before[0]
    assert file_signature(str(path), 3) == before[1]
    assert file_signature("s3://bucket/image.zarr", 100) == ""


def test_slices_and_files_are_looked_at(tmp_path: Path) -> None:
    for name in ("z_1.png", "z_2.png"):
        (tmp_path / name).write_bytes(imagecodecs.png_encode(noise(5, 5)))
    paths = str(tmp_path / "z_*.png"), str(tmp_path), str(tmp_path / "z_2.png")
    before = [file_signature(path, 10) for path in paths]
    replaced_by_an_older(tmp_path / "z_2.png")
    assert not set(before) & {file_signature(path, 10) for path in paths}


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


@pytest.mark.parametrize(
    ("axes", "told"), [(None, "z planes"), ("tyx", "time points"), ("cyx", "channels")]
)
def test_separate_files_are_told_as_what_they_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, axes: str | None, told: str
) -> None:
    """Else three images become one stack, and nobody is told."""
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", noise(8, 9))
    with caplog.at_level(logging.INFO, "unet"):
        opened(tmp_path, axes=axes)
    assert caplog.messages == [f"{tmp_path}: 3 files are read as {told} of one image"]


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
