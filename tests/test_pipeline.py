"""The four stages on real Dask workers: same bytes for any slabs, order and interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from conftest import REPOSITORY, files_in, picture
from ome_zarr_models.v05 import Image, ImageLabel, Labels
from support import GENEROUS, ONE_CORE, run_stages

import unet
from unet.errors import RunError, SourceError, StoreError
from unet.execution import pool
from unet.execution.dispatch import dispatch
from unet.planning.geometry import Box
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.stages.manifests import read_plan
from unet.stages.probabilities import (
    create_probabilities,
    probabilities_array,
)
from unet.storage import ome
from unet.storage.ledger import recorded
from unet.storage.manifest import read_manifest
from unet.storage.ownership import delete_partial_files
from unet.storage.store import open_image
from unet.storage.workspace import Workspace

CUT = {"shard": (64, 64), "chunk": (32, 32), "core": (32, 64)}


@pytest.fixture(scope="module")
def pixels():
    return picture(150, 210)


@pytest.fixture(scope="module")
def source(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64))
    return SourceSpec(str(path), pixel_size={"y": 0.5, "x": 0.5})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source, tiny_model):
    """An undisturbed run in one slab: what all others are compared with."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed") / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    return workspace


def stores(workspace: Workspace) -> dict[str, bytes]:
    """Every byte of the probabilities and of the result."""
    (folder,) = (workspace.root / "work").glob("predict-*")
    return {
        **files_in(folder / "probabilities.ome.zarr"),
        **{f"result/{name}": content for name, content in files_in(workspace.result).items()},
    }


def test_dask_equals_the_untiled_reference(finished, pixels, tiny_model):
    plan = read_plan(finished)
    found = create_probabilities(plan, finished).array.array[0]
    expected = unet.predict(unet.load_model(tiny_model.folder), pixels)[1]
    assert plan.blocks == 12
    assert np.array_equal(found, expected)
    mask = zarr.open_array(finished.result / "labels/mask/0", mode="r")[...]
    assert np.array_equal(mask, expected > 0.5)
    assert 0 < mask.mean() < 1


@pytest.mark.slow
def test_five_slabs_equal_one(finished, source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, slabs=5, **CUT)
    assert stores(workspace) == stores(finished)


@pytest.mark.slow
def test_other_windows_give_the_same_bytes(finished, source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **{**CUT, "core": (16, 16)})
    assert stores(workspace) == stores(finished)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    finished, source, tiny_model, tmp_path
):
    """SIGKILL of the whole process group of the workflow, twice, while it predicts."""
    config = {
        "images": [
            {
                "name": "image",
                "path": source.path,
                "model": str(tiny_model.folder),
                "pixel_size": source.pixel_size,
            }
        ],
        "split": {key: list(value) for key, value in CUT.items()},
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        *("--snakefile", str(REPOSITORY / "workflow" / "Snakefile"), "--cores", "1"),
        *("--directory", str(tmp_path), "--rerun-incomplete"),
    ]
    workspace = Workspace(tmp_path / "results" / "image")

    def done() -> int:
        shards = workspace.root.glob("work/predict-*/probabilities.ome.zarr/0/c/**/*")
        return sum(path.is_file() for path in shards)

    for wanted in (1, 5):
        running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while running.poll() is None and done() < wanted:
            time.sleep(0.005)
        assert running.poll() is None, "the run ended before it could be killed"
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        subprocess.run([*command, "--unlock"], check=True, capture_output=True)
    already = [
        block
        for folder in workspace.root.glob("work/predict-*/ledger")
        for block, _ in recorded(folder)
    ]
    subprocess.run(command, check=True, capture_output=True)
    (ledger,) = workspace.root.glob("work/predict-*/ledger")
    again = [block for block, _ in recorded(ledger)]
    assert again[: len(already)] == already
    assert sorted(again) == list(range(12)), "a finished block was computed again"
    assert stores(workspace) == stores(finished)
    assert not list(workspace.root.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_block_done_again(
    finished, source, tiny_model, tmp_path
):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    (folder,) = workspace.root.glob("work/predict-*")
    shutil.rmtree(folder)
    plan = read_plan(workspace)
    create_probabilities(plan, workspace)
    job = predict.PredictJob("kill", plan, probabilities_array(plan, workspace), "cpu", 1)
    killed, recorded_blocks = [], []

    def record(block: int, _size: int) -> None:
        recorded_blocks.append(block)
        if not killed:
            (pid,) = workers.client.run(os.getpid).values()
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    with pool.connect(ONE_CORE) as workers:
        dispatch(workers.client, job, iter(range(plan.blocks)), record, in_flight=3)
    assert killed
    assert sorted(recorded_blocks) == list(range(plan.blocks))
    # As stitch does: the worker was killed while it wrote.
    delete_partial_files(folder / "probabilities.ome.zarr")
    assert stores(workspace) == stores(finished)


@pytest.mark.slow
def test_a_hole_is_an_error_that_names_it_and_the_result_stays(source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    plan = run_stages(source, tiny_model, workspace, **CUT)
    before = files_in(workspace.result)
    create_probabilities(plan, workspace).array.shard_file(7).unlink()
    with pytest.raises(
        StoreError, match=r"1 are missing.*block 7 \(0:1 x 0:1 x 64:128 x 192:210\)"
    ):
        stitch.run(workspace, StitchOptions(threshold=0.4), ONE_CORE)
    assert files_in(workspace.result) == before
    predict.run(workspace, 0, 1, ONE_CORE, "cpu")
    stitch.run(workspace, StitchOptions(), ONE_CORE)
    assert files_in(workspace.result) == before


@pytest.mark.slow
def test_a_flipped_bit_is_found(source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    plan = run_stages(source, tiny_model, workspace, **CUT)
    file = create_probabilities(plan, workspace).array.shard_file(3)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        stitch.run(workspace, StitchOptions(threshold=0.4), ONE_CORE)


@pytest.mark.slow
def test_changed_weights_never_meet_the_old_blocks(source, make_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    first, second = make_model(seed=1), make_model(seed=2)
    run_stages(source, first, workspace, **CUT)
    one = files_in(workspace.result)
    run_stages(source, second, workspace, **CUT)
    assert files_in(workspace.result) != one
    run_stages(source, first, workspace, **CUT)
    assert files_in(workspace.result) == one


def test_the_result_is_a_valid_ome_zarr(finished):
    image = Image.from_zarr(zarr.open_group(finished.result, mode="r"))
    labels = Labels.from_zarr(zarr.open_group(finished.result / "labels", mode="r"))
    mask = ImageLabel.from_zarr(zarr.open_group(finished.result / "labels/mask", mode="r"))
    assert labels.ome_attributes.labels == ["mask"]
    (scale,) = [m.datasets for m in image.ome_attributes.multiscales]
    (mask_scale,) = [m.datasets for m in mask.ome_attributes.multiscales]
    assert len(scale) == len(mask_scale)
    assert scale[0].coordinateTransformations[0].scale == [0.5, 0.5]


@pytest.mark.slow
def test_the_result_holds_the_image_and_both_pyramids(make_model, tmp_path):
    pixels = picture(3, 1100, 530)
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", planarconfig="separate")
    workspace = Workspace(tmp_path / "rgb")
    run_stages(SourceSpec(str(path)), make_model(in_channels=3), workspace)
    group = zarr.open_group(workspace.result, mode="r")
    assert np.array_equal(group["0"][...], pixels)
    halved = pixels[:, :1100].astype(int).reshape(3, 550, 2, 265, 2)
    assert np.array_equal(group["1"][...], (halved.sum(axis=(2, 4)) + 2) // 4)
    assert [group[f"labels/mask/{level}"].shape for level in "012"] == [
        (1100, 530),
        (550, 265),
        (275, 133),
    ]
    assert group["2"].shape == (3, 275, 133)
    mask = group["labels/mask/0"][...].reshape(550, 2, 265, 2).sum(axis=(1, 3))
    assert np.array_equal(group["labels/mask/1"][...], mask > 2)


def test_one_bright_pixel_does_not_leave_the_others_black(machines, tmp_path):
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    pixels[0, 0] = 60_000
    tifffile.imwrite(tmp_path / "image.tif", pixels)
    workspace = Workspace(tmp_path / "image")
    ingest.run(SourceSpec(str(tmp_path / "image.tif")), workspace, machines)
    image = read_manifest(workspace.manifest("ingest"), ingest.IngestManifest).image
    assert image.data_range == (1, 60_000)
    assert image.contrast_limits == ((5, 4092),)  # the 5th and the 4092nd of 4096 values
    attributes = ome.multiscales("i", "yx", {}, [(1, 1, 1, 1)], "mean")
    shown = ome.add_channels(
        attributes, image.channel_names, image.data_range, image.contrast_limits
    )
    (channel,) = shown["ome"]["omero"]["channels"]
    assert channel["window"] == {"min": 1, "max": 60_000, "start": 5, "end": 4092}


def test_a_result_lies_where_its_source_lies(pixels, tiny_model, machines, tmp_path):
    """Of an OME-Zarr that is a part of a larger one, the transformations of the level are kept."""
    path = tmp_path / "part.ome.zarr"
    micrometres = {"type": "space", "unit": "micrometer"}
    placed = {
        "axes": [{"name": axis, **micrometres} for axis in "yx"],
        "datasets": [
            {
                "path": name,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [size, size]},
                    {"type": "translation", "translation": [10 + size / 2, 20 + size / 2]},
                ],
            }
            for name, size in (("full", 0.5), ("half", 1.0))
        ],
        "coordinateTransformations": [
            {"type": "scale", "scale": [2, 2]},
            {"type": "translation", "translation": [1, 0]},
        ],
    }
    zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [placed]}})
    zarr.create_array(path / "half", data=pixels, chunks=(64, 64))
    workspace = Workspace(tmp_path / "image")
    run_stages(SourceSpec(str(path), level=1), tiny_model, workspace, machines=machines, **CUT)
    for group in (workspace.result, workspace.result / "labels/mask"):
        described = zarr.open_group(group, mode="r").attrs["ome"]["multiscales"][0]
        assert {axis["unit"] for axis in described["axes"]} == {"micrometer"}
        # 2 (1 i + 10.5) + 1 and 2 (1 i + 20.5) for pixel i
        assert described["datasets"][0]["coordinateTransformations"] == [
            {"type": "scale", "scale": [2.0, 2.0]},
            {"type": "translation", "translation": [22.0, 41.0]},
        ]


DAMAGED_STORES = [
    "work/ingest-*/image.ome.zarr/0",
    "work/predict-*/probabilities.ome.zarr/0",
    "image.ome.zarr/labels/mask/0",
]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
@pytest.mark.parametrize("array", DAMAGED_STORES)
def test_a_damaged_description_of_a_store_is_made_again(
    array, content, finished, source, tiny_model, machines, tmp_path
):
    """No checksum of a shard can see it."""
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    (damaged,) = workspace.root.glob(array)
    (damaged / "zarr.json").write_bytes(content)
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    assert stores(workspace) == stores(finished)


def test_a_damaged_shard_before_there_is_a_result_is_named(
    finished, source, tiny_model, machines, tmp_path
):
    """`verify` needs a result: so the error names the block, and what to do mends it."""
    workspace = Workspace(tmp_path / "image")
    plan = run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    shutil.rmtree(workspace.result)
    shutil.rmtree(next(workspace.root.glob("work/stitch-*")))
    shard = create_probabilities(plan, workspace).array.shard_file(4)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"1 are missing or damaged: block 4 .*--forcerun predict"):
        stitch.run(workspace, StitchOptions(), machines)
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    assert stores(workspace) == stores(finished)


@pytest.mark.slow
def test_a_zarr_source_is_read_in_place(source, pixels, finished, tiny_model, tmp_path):
    path = tmp_path / "own.zarr"
    zarr.create_array(path, data=pixels, chunks=(50, 70), zarr_format=2)
    before = files_in(path)
    workspace = Workspace(tmp_path / "image")
    run_stages(SourceSpec(str(path), pixel_size=source.pixel_size), tiny_model, workspace, **CUT)
    assert not list((workspace.root / "work").glob("ingest-*"))
    assert files_in(path) == before
    mask = zarr.open_array(workspace.result / "labels/mask/0", mode="r")[...]
    expected = zarr.open_array(finished.result / "labels/mask/0", mode="r")[...]
    assert np.array_equal(mask, expected)
    assert np.array_equal(zarr.open_array(workspace.result / "0", mode="r")[...], pixels)


@pytest.mark.slow
def test_the_mask_can_be_had_without_the_image(source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, choice=StitchOptions(image=False), **CUT)
    assert sorted(zarr.open_group(workspace.result, mode="r").group_keys()) == ["labels"]
    ImageLabel.from_zarr(zarr.open_group(workspace.result / "labels/mask", mode="r"))


def test_a_block_that_always_fails_is_named_and_the_others_finish():
    class Stubborn:
        name = "stubborn"

        def open(self):
            def do(block: int) -> int:
                if block == 3:
                    raise RuntimeError("not this one")
                return block

            return do

    done = []
    with (
        pool.connect(ONE_CORE) as workers,
        pytest.raises(RunError, match=r"1 failed 3 times.*block 3.*not this one"),
    ):
        dispatch(workers.client, Stubborn(), iter(range(20)), lambda b, _: done.append(b), 4)
    assert sorted(done) == [b for b in range(20) if b != 3]


@pytest.mark.slow
def test_manifests_of_equal_runs_are_equal(finished, source, tiny_model, tmp_path):
    """So that Snakemake does not run what depends on them again."""
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    one, two = (json.loads(p.manifest("split").read_text()) for p in (finished, workspace))
    assert one["fingerprint"] == two["fingerprint"]
    before = workspace.manifest("split").read_bytes()
    run_stages(source, tiny_model, workspace, **CUT)
    assert workspace.manifest("split").read_bytes() == before


@pytest.mark.slow
def test_slabs_may_start_at_the_same_time(source, tiny_model, finished, tmp_path):
    """Four processes open the stores of a run that split did not make, all at once."""
    workspace = Workspace(tmp_path / "image")
    ingest.run(source, workspace, ONE_CORE)
    plan = split.run(workspace, str(tiny_model.folder), SplitOptions(memory=GENEROUS, **CUT), 4)
    for _ in range(5):
        shutil.rmtree(workspace.root / "work" / f"predict-{plan.fingerprint}")
        code = f"""if True:
            from pathlib import Path
            from unet.stages.manifests import read_plan
            from unet.stages.probabilities import create_probabilities
            from unet.storage.workspace import Workspace
            workspace = Workspace(Path({str(workspace.root)!r}))
            create_probabilities(read_plan(workspace), workspace)"""
        started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
        assert [process.wait() for process in started] == [0, 0, 0, 0]
    for slab in range(4):
        predict.run(workspace, slab, 4, ONE_CORE, "cpu")
    stitch.run(workspace, StitchOptions(), ONE_CORE)
    assert stores(workspace) == stores(finished)


@pytest.mark.slow
def test_an_image_that_lost_a_file_is_an_error(source, tiny_model, tmp_path):
    """Not a black square: of a store that this project wrote, every shard must be there."""
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    (image,) = (workspace.root / "work").glob("ingest-*/image.ome.zarr/0/c")
    next(path for path in image.rglob("*") if path.is_file()).unlink()
    shutil.rmtree(next((workspace.root / "work").glob("predict-*")))
    with pytest.raises(StoreError, match=r"all 1 blocks of .*image.ome.zarr.*1 are missing"):
        predict.run(workspace, 0, 1, ONE_CORE, "cpu")


def test_an_image_that_changes_under_a_run_is_an_error(pixels, tiny_model, tmp_path):
    """A Zarr that is read in place: blocks of two images must not mix."""
    path = tmp_path / "own.zarr"
    array = zarr.create_array(path, data=pixels, chunks=(50, 70))
    workspace = Workspace(tmp_path / "image")
    ingest.run(SourceSpec(str(path)), workspace, ONE_CORE)
    split.run(workspace, str(tiny_model.folder), SplitOptions(memory=GENEROUS, **CUT), 2)
    predict.run(workspace, 0, 2, ONE_CORE, "cpu")
    array[:50] = 0
    with pytest.raises(SourceError, match="changed since"):
        predict.run(workspace, 1, 2, ONE_CORE, "cpu")


@pytest.mark.parametrize("channels", [(2, 1, 0), (1,), (0, 0, 2), (0, 2), (2, 1)])
def test_channels_of_a_zarr_are_read_in_the_order_asked_for(channels, tmp_path):
    pixels = picture(3, 60, 70)
    array = zarr.create_array(tmp_path / "own.zarr", data=pixels, dimension_names=["c", "y", "x"])
    array.attrs["about"] = "an image of three channels"
    source = SourceSpec(str(tmp_path / "own.zarr"), channels=channels)
    found = open_source(source)
    image, _ = ingest._locate_image(found, source, Workspace(tmp_path / "image"))
    whole = Box((0, 0, 0, 0), image.shape)
    assert np.array_equal(open_image(image).read(whole)[0, :, 0], pixels[list(channels)])
    assert np.array_equal(found.read(whole)[0, :, 0], pixels[list(channels)])


@pytest.mark.slow
def test_a_corrected_pixel_size_reaches_the_result(source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    corrected = SourceSpec(source.path, pixel_size={"y": 0.25, "x": 0.25})
    run_stages(corrected, tiny_model, workspace, **CUT)
    (scales,) = zarr.open_group(workspace.result, mode="r").attrs["ome"]["multiscales"]
    assert scales["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.25, 0.25]
    assert len(list((workspace.root / "work").glob("ingest-*"))) == 1


@pytest.mark.slow
def test_a_result_that_lost_a_file_is_made_again(finished, source, tiny_model, tmp_path):
    workspace = Workspace(tmp_path / "image")
    run_stages(source, tiny_model, workspace, **CUT)
    (workspace.result / "labels/mask/0/c/1/1").unlink()
    stitch.run(workspace, StitchOptions(), ONE_CORE)
    assert stores(workspace) == stores(finished)
