"""What no reader guesses is refused, in a sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from reading import noise, opened, write_ome_zarr

from unet.errors import AxesError, SourceError
from unet.planning.geometry import Box
from unet.sources import open_source
from unet.sources.base import SourceSpec

pytestmark = pytest.mark.usefixtures("quiet_tifffile")


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
    "tiff without axes": (
        tiff(noise(3, 8, 8), **PLANES),
        {},
        r"does not say what its dimension of length 3 is: planes \(z\)",
    ),
    "too many tiff axes": (
        tiff(noise(3, 8, 8), **PLANES),
        {"axes": "tczyx"},
        r"axes 'tczyx' name 5 dimensions, but the image has 3, of shape \(3, 8, 8\)",
    ),
    "xyz": (tiff(noise(3, 8, 8), **PLANES), {"axes": "xyz"}, "In TIFF each plane is y, x"),
    "rgb as z": (
        tiff(noise(8, 8, 3), photometric="rgb"),
        {"axes": "zyx"},
        "axes 'zyx' do not fit its shape",
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


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 3, 8, 9), (2, 3, 4, 8, 9), (5, 8, 9, 3)])
def test_unknown_axes_are_asked_for_in_plain_words_and_the_example_fits(tmp_path, shape):
    """Not in the letters of a library, such as Q or I."""
    colours = {"photometric": "rgb" if shape[-1] == 3 else "minisblack"}
    path = tiff(noise(*shape), **colours)(tmp_path)
    with pytest.raises(AxesError, match=r"planes \(z\), time points \(t\) or channels") as caught:
        opened(path)
    told = str(caught.value).removeprefix(path)
    assert re.findall(r"\b[A-Z]+\b|tifffile", told) == []
    example = re.findall(r"'([a-z]+)'", told)
    assert len(example) == 1
    assert set(opened(path, axes=example[0]).axes) == set(example[0].replace("s", "c"))


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_axes_of_separate_files_are_read_or_told_as_they_were_given(tmp_path, suffix):
    """Whatever they are: a message about a part of them, for one file, would be a riddle."""
    for number in range(3):
        file = tmp_path / f"{number}.{suffix}"
        if suffix == "tif":
            tifffile.imwrite(file, noise(8, 9))
        else:
            file.write_bytes(imagecodecs.png_encode(noise(8, 9)))
    along = {"z", "t", "c"}
    for length in range(1, 5):
        for axes in map("".join, permutations("tczyxs", length)):
            if axes in along or (axes[0] in along and axes[1:] == "yx"):
                assert set(opened(tmp_path, axes=axes).axes) == {axes[0], "y", "x"}
                continue
            with pytest.raises(AxesError, match="along the files") as caught:
                opened(tmp_path, axes=axes)
            assert f"{tmp_path}" in str(caught.value)
            assert f"axes {axes!r}" in str(caught.value)


@pytest.mark.parametrize("axes", ["yx", "xy", "yxs"])
def test_separate_images_are_told_where_to_go(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 9))
    with pytest.raises(AxesError, match=r"an entry each in `images`: see docs/formats\.md"):
        opened(tmp_path / "*.tif", axes=axes)


def test_a_box_outside_the_image_is_a_bug(tmp_path: Path) -> None:
    source = open_source(SourceSpec(array((4, 4))(tmp_path)))
    for start, stop in (((0, 0, 0, 0), (1, 1, 4, 5)), ((0, 0, 2, 0), (1, 1, 2, 4))):
        with pytest.raises(ValueError, match="not inside an image"):
            source.read(Box(start, stop))
