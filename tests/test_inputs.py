"""Images and models are judged by what they look like or hold, never by which file is newer."""

import os
import shutil
import time
import uuid

import numpy as np
import pytest
import tifffile
import zarr
from conftest import files_in, make_tiny_model, picture
from hypothesis import assume, given
from hypothesis import strategies as st

import unet
from unet.sources import file_signature, source_files
from unet.sources.tiff.parts import find_parts

HOUR_NS = 3600 * 10**9
LATEST_NS = 4 * 10**18  # in the year 2096
KINDS = ["file", "slices", "zarr", "set"]
FORMS = [(order, big) for order in "<>" for big in (False, True)]


def write_set(folder, planes, byteorder="<", bigtiff=False):
    """An OME-TIFF image with one file for each plane, each of which names all; returns them."""
    parts = {f"part & {z}.ome.tif": f"urn:uuid:{uuid.UUID(int=z + 1)}" for z in range(len(planes))}
    (height, width), depth = planes[0].shape, len(planes)
    lists = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name.replace("&", "&amp;")}">{number}</UUID></TiffData>'
        for z, (name, number) in enumerate(parts.items())
    )
    for plane, (name, number) in zip(planes, parts.items(), strict=True):
        description = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME UUID="{number}" '
            f'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" '
            f'SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{lists}</Pixels></Image></OME>'
        )
        file = folder / name
        with tifffile.TiffWriter(file, byteorder=byteorder, bigtiff=bigtiff) as tif:
            tif.write(plane, description=description, metadata=None)
    return [folder / name for name in parts]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image of each kind: its path, and every file that it is made of."""
    folder = tmp_path_factory.mktemp("images")
    for kind in KINDS:
        (folder / kind).mkdir()
    planes = picture(3, 20, 30)
    tifffile.imwrite(folder / "file" / "image.tif", planes[0])
    for z, plane in enumerate(planes):
        tifffile.imwrite(folder / "slices" / f"z_{z}.tif", plane)
    zarr.create_array(folder / "zarr" / "image.zarr", data=planes, chunks=(1, 20, 10))
    parts = write_set(folder / "set", planes)
    paths = {
        "file": folder / "file" / "image.tif",
        "slices": folder / "slices",
        "zarr": folder / "zarr" / "image.zarr",
        "set": parts[1],
    }
    return {
        kind: (str(path), [folder / kind / name for name in files_in(folder / kind)])
        for kind, path in paths.items()
    }


@given(st.sampled_from(KINDS), st.integers(0, 100), st.integers(0, LATEST_NS))
def test_any_other_time_of_any_file_is_seen(images, kind, number, time_ns):
    path, files = images[kind]
    file = files[number % len(files)]
    before, before_ns = file_signature(path, 1000), file.stat().st_mtime_ns
    assume(time_ns != before_ns)
    os.utime(file, ns=(time_ns, time_ns))
    changed = file_signature(path, 1000)
    os.utime(file, ns=(before_ns, before_ns))
    assert changed != before
    assert file_signature(path, 1000) == before


@given(st.sampled_from(KINDS), st.integers(0, 100))
def test_any_other_size_of_any_file_is_seen(images, kind, number):
    path, files = images[kind]
    file = files[number % len(files)]
    before, before_ns = file_signature(path, 1000), file.stat().st_mtime_ns
    with file.open("ab") as opened:
        opened.write(b"\0")
    os.utime(file, ns=(before_ns, before_ns))
    changed = file_signature(path, 1000)
    os.truncate(file, file.stat().st_size - 1)
    os.utime(file, ns=(before_ns, before_ns))
    assert changed != before
    assert file_signature(path, 1000) == before


@pytest.mark.parametrize(("byteorder", "bigtiff"), FORMS)
def test_every_part_of_a_set_leads_to_all(tmp_path, byteorder, bigtiff):
    files = write_set(tmp_path, picture(4, 20, 30), byteorder, bigtiff)
    for file in files:
        assert source_files(str(file))[0] == str(file)
        assert set(source_files(str(file))) == set(map(str, files))
    files[2].unlink()
    assert find_parts(files[0]) == [files[1], files[3]]


def test_a_file_that_is_no_set_has_no_parts(small_image, tmp_path):
    (tmp_path / "empty").touch()
    assert [find_parts(path) for path in (small_image, tmp_path / "empty")] == [[], []]


@given(st.data())
def test_a_damaged_file_has_no_parts_but_those_that_are_there(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    byteorder, bigtiff = data.draw(st.sampled_from(FORMS))
    files = write_set(folder, picture(2, 4, 4), byteorder, bigtiff)
    content = bytearray(files[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    files[0].write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert set(find_parts(files[0])) <= {files[1]}


def set_time(time_ns, *paths):
    for path in paths:
        os.utime(path, ns=(time_ns, time_ns))


def assert_right(run, config, folder, images):
    """One run makes the masks of these pixels, and a second one has nothing to do."""
    done = run(config, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, image in images.items():
        result = folder / "results" / name / f"{name}.ome.zarr"
        mask = zarr.open_array(result / "labels/mask/0", mode="r")[...]
        expected = unet.predict(unet.load_model(folder / "model"), image)[1] > 0.5
        assert 0 < expected.mean() < 1, "a mask of one value would show no difference"
        assert np.array_equal(np.squeeze(mask), expected), name
    again = run(config, folder)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
def test_an_image_or_a_model_is_used_whatever_its_time_says(run_workflow, tmp_path):
    """From the future, replaced by an older one, or one file of a set alone."""
    now, old, new = time.time_ns(), picture(90, 130), picture(90, 130, seed=1)
    planes = picture(2, 40, 50)
    for folder in ("model", "kept"):
        (tmp_path / folder).mkdir()
    models = [make_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("model", "kept"))]
    for name, image in (("future", old), ("older", old), ("kept/older", new)):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    parts = write_set(tmp_path, planes)
    paths = {"future": "future.tif", "older": "older.tif", "set": parts[0].name}
    config = {
        "images": [
            {"name": name, "path": path, "model": "./model"} for name, path in paths.items()
        ],
        "split": {"shard": [32, 32], "chunk": [16, 16]},
    }
    set_time(now + HOUR_NS, tmp_path / "future.tif", parts[0], models[0].weights)
    assert_right(run_workflow, config, tmp_path, {"future": old, "older": old, "set": planes})

    planes[1] = picture(40, 50, seed=2)
    again = write_set(tmp_path / "kept", planes)
    set_time(now - HOUR_NS, *(tmp_path / "kept").iterdir())
    shutil.copy2(again[1], parts[1])
    shutil.copy2(tmp_path / "kept" / "older.tif", tmp_path / "older.tif")
    assert_right(run_workflow, config, tmp_path, {"future": old, "older": new, "set": planes})

    for name in ("model.yaml", "weights.safetensors"):
        shutil.copy2(tmp_path / "kept" / name, tmp_path / "model" / name)
    assert_right(run_workflow, config, tmp_path, {"future": old, "older": new, "set": planes})
