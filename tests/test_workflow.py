"""The real snakemake on the real workflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from conftest import REPOSITORY, files_in, picture

import unet

SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workflow")


@pytest.fixture(scope="module")
def config(folder, make_model):
    rgb, stack = picture(3, 90, 130), picture(3, 40, 50, dtype="uint16")
    tifffile.imwrite(folder / "rgb.tif", np.moveaxis(rgb, 0, -1), photometric="rgb")
    (folder / "slices").mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / "slices" / f"z_{z + 8}.tif", plane)
    return {
        "images": [
            {"name": "rgb", "path": "rgb.tif", "model": str(make_model(in_channels=3).folder)},
            {"name": "stack", "path": "slices/z_*.tif", "model": str(make_model().folder)},
        ],
        "split": {"shard": [32, 32], "chunk": [16, 16]},
    }


@pytest.fixture(scope="module")
def finished(run_workflow, config, folder):
    done = run_workflow(config, folder, "--set-scatter", "slab=2")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_every_mask_is_the_one_of_the_reference(config, folder):
    images = {
        "rgb": np.moveaxis(tifffile.imread(folder / "rgb.tif"), -1, 0),
        "stack": np.stack([tifffile.imread(folder / f"slices/z_{z}.tif") for z in (8, 9, 10)]),
    }
    for item in config["images"]:
        result = folder / "results" / item["name"] / f"{item['name']}.ome.zarr"
        mask = zarr.open_array(result / "labels/mask/0", mode="r")[...]
        expected = unet.predict(unet.load_model(item["model"]), images[item["name"]])[1]
        assert np.array_equal(mask, expected > 0.5)


@pytest.mark.slow
def test_it_tells_how_far_it_is(finished):
    assert re.search(
        r"predict rgb 1/2.*\d+ / \d+ blocks, [\d.]+ Mpx/s, \d+ s left", finished.stderr
    )


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_a_second_call_has_nothing_to_do(run_workflow, config, folder):
    before = files_in(folder / "results")
    done = run_workflow(config, folder, "--set-scatter", "slab=2")
    assert "Nothing to be done" in (done.stdout + done.stderr)
    assert files_in(folder / "results") == before


RGB = ("results/rgb/stitch.json", "--set-scatter", "slab=2")
DAMAGES = {
    "the result is gone": lambda root: shutil.rmtree(root / "rgb.ome.zarr"),
    "a shard is empty": lambda root: os.truncate(root / "rgb.ome.zarr/labels/mask/0/c/0/1", 0),
    "a shard is cut": lambda root: os.truncate(root / "rgb.ome.zarr/labels/mask/0/c/1/1", 9),
    "a shard is gone": lambda root: (root / "rgb.ome.zarr/labels/mask/0/c/0/0").unlink(),
    "a group does not read": lambda root: os.truncate(root / "rgb.ome.zarr/labels/zarr.json", 5),
    "the root does not read": lambda root: os.truncate(root / "rgb.ome.zarr/zarr.json", 0),
    "an earlier manifest is gone": lambda root: (root / "split.json").unlink(),
    "the record is cut": lambda root: os.truncate(root / "written/last.json", 7),
}


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_result_that_is_gone_or_damaged_is_made_again_once(run_workflow, config, folder, damage):
    root = folder / "results" / "rgb"
    before = files_in(root / "rgb.ome.zarr")
    DAMAGES[damage](root)
    done = run_workflow(config, folder, *RGB)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_in(root / "rgb.ome.zarr") == before
    assert "blocks, " not in re.sub("(mask|copy|level).*", "", done.stdout), "predicted again"
    again = run_workflow(config, folder, *RGB)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_another_result_in_its_place_is_named_and_stays(run_workflow, config, folder):
    results = folder / "results"
    (results / "rgb" / "rgb.ome.zarr").rename(folder / "kept")
    shutil.copytree(results / "stack" / "stack.ome.zarr", results / "rgb" / "rgb.ome.zarr")
    before = files_in(results / "rgb" / "rgb.ome.zarr")
    done = run_workflow(config, folder, *RGB)
    assert done.returncode == 1
    assert "rgb.ome.zarr to hold only what this workflow wrote" in done.stdout + done.stderr
    assert files_in(results / "rgb" / "rgb.ome.zarr") == before
    shutil.rmtree(results / "rgb" / "rgb.ome.zarr")
    (folder / "kept").rename(results / "rgb" / "rgb.ome.zarr")
    assert run_workflow(config, folder, *RGB).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_the_same_pixels_in_another_file_are_not_predicted_again(run_workflow, config, folder):
    pixels = tifffile.imread(folder / "rgb.tif")
    tifffile.imwrite(folder / "rgb.tif", pixels, photometric="rgb", compression="zlib")
    (ledger,) = (folder / "results" / "rgb" / "work").glob("predict-*/ledger")
    before = files_in(ledger)
    done = run_workflow(config, folder, "--set-scatter", "slab=2")
    assert "rule ingest" in done.stdout + done.stderr
    assert [ledger] == list((folder / "results" / "rgb" / "work").glob("predict-*/ledger"))
    assert files_in(ledger) == before


@pytest.mark.slow
def test_an_image_that_changed_is_done_again(run_workflow, tiny_model, tmp_path):
    """The chunks of a Zarr alone, or by an older file: the plain command sees it all the same."""
    array = zarr.create_array(tmp_path / "own.zarr", data=picture(90, 130), chunks=(30, 50))
    older, file = tmp_path / "older.tif", tmp_path / "file.tif"
    tifffile.imwrite(older, picture(90, 130, seed=1))
    tifffile.imwrite(file, picture(90, 130))
    model = str(tiny_model.folder)
    images = [
        {"name": "own", "path": "own.zarr", "axes": "yx", "model": model},
        {"name": "file", "path": "file.tif", "model": model},
    ]
    config = {"images": images, "split": {"shard": [32, 32], "chunk": [16, 16]}}
    assert run_workflow(config, tmp_path).returncode == 0
    array[30:60, 50:100] = picture(30, 50, seed=1)
    older.replace(file)
    done = run_workflow(config, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, image in (("own", array[...]), ("file", picture(90, 130, seed=1))):
        result = tmp_path / "results" / name / f"{name}.ome.zarr"
        mask = zarr.open_array(result / "labels/mask/0", mode="r")[...]
        assert np.array_equal(mask, unet.predict(unet.load_model(model), image)[1] > 0.5)
    again = run_workflow(config, tmp_path)
    assert "Nothing to be done" in again.stdout + again.stderr


def jobs(*arguments: str) -> dict[str, str]:
    done = subprocess.run(
        [SNAKEMAKE, "--dry-run", "--forceall", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    table = re.findall(r"^(\w+) +(\d+)$", (done.stdout + done.stderr), flags=re.MULTILINE)
    return {name: count for name, count in table if name not in ("default", "all", "total")}


def test_both_snakefiles_list_the_same_jobs():
    listed = jobs("--snakefile", "Snakefile")
    assert listed == jobs("--snakefile", "workflow/Snakefile")
    assert {"ingest", "split", "predict", "stitch"} <= listed.keys()


def test_slabs_are_chosen_on_the_command_line():
    assert jobs("--set-scatter", "slab=8")["predict"] == str(8 * int(jobs()["predict"]))


def test_every_job_has_its_resources_on_a_cluster():
    """A rule that runs a script and is not for the machine of Snakemake itself is a job."""
    text = "".join(file.read_text() for file in (REPOSITORY / "workflow/rules").glob("*.smk"))
    rules = re.findall(r"^rule (\w+):\n((?:(?: .*)?\n)+)", text, flags=re.MULTILINE)
    wanted = {
        name: {"mem_mb", "runtime"} | ({"gpu"} if "gpu=0" in body else set())
        for name, body in rules
        if "script:" in body and "localrule: True" not in body
    }
    assert {"predict", "train", "evaluate"} <= wanted.keys()
    profile = yaml.safe_load((REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text())
    assert {name: set(said) for name, said in profile["set-resources"].items()} == wanted
    assert profile["set-threads"].keys() == wanted.keys()


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_the_profiles_are_valid(name):
    assert jobs("--workflow-profile", f"workflow/profiles/{name}") == jobs()
