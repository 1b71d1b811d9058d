"""A finished run proves itself: damage is found, named and mended; a false store is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from conftest import files_in, picture
from hypothesis import given
from hypothesis import strategies as st
from support import GENEROUS, planned

from unet.errors import RunError, SourceError, StoreError, WorkerError
from unet.execution.machines import Machines
from unet.model.architecture import Architecture
from unet.model.folder import ModelSpec
from unet.model.normalisation import Normalisation
from unet.network.devices import processor_name
from unet.network.self_test import SelfTest, tolerance
from unet.planning.cross_check import other_core, sample_blocks, shifted_box, shifted_grid
from unet.planning.image import IngestedImage
from unet.planning.options import SplitOptions, StitchOptions
from unet.planning.plan import Plan, make_plan
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch, verify
from unet.stages.manifests import read_plan
from unet.stages.predict import CheckedPredictJob, PredictJob
from unet.stages.probabilities import create_probabilities, probabilities_array
from unet.storage.ledger import Ledger
from unet.storage.store import ArrayRef
from unet.storage.workspace import Workspace

CUT = SplitOptions(memory=GENEROUS, shard=(64, 64), chunk=(32, 32), core=(32, 64))


def run_all(source: SourceSpec, model: Path, workspace: Workspace, machines: Machines) -> None:
    ingest.run(source, workspace, machines)
    split.run(workspace, str(model), CUT, slabs=2)
    for slab in range(2):
        predict.run(workspace, slab, 2, machines, "cpu")
    stitch.run(workspace, StitchOptions(), machines)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceSpec:
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, picture(600, 210), tile=(64, 64))
    return SourceSpec(str(path))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    source: SourceSpec,
    tiny_model: ModelSpec,
    machines: Machines,
) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "image")
    run_all(source, tiny_model.folder, workspace, machines)
    return workspace


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """The finished run, put back as it was afterwards: its manifests hold its paths."""
    shutil.copytree(finished.root, tmp_path / "kept")
    yield finished
    shutil.rmtree(finished.root)
    shutil.copytree(tmp_path / "kept", finished.root)


def verified(workspace: Workspace, source: SourceSpec, machines: Machines, blocks: int = 6) -> Any:
    asked = verify.VerifyOptions(source, StitchOptions(), blocks=blocks)
    verify.run(workspace, asked, verify.StageMachines(machines, machines, "cpu"))
    return proof_of(workspace)


def proof_of(workspace: Workspace) -> Any:
    """What the manifest says, without its checksum."""
    proof = json.loads(workspace.manifest("verify").read_text())
    return {key: value for key, value in proof.items() if key != "checksum"}


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES = [flipped, truncated, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_only_that_block_is_made_again(
    damage: Callable[[Path], None],
    workspace: Workspace,
    source: SourceSpec,
    machines: Machines,
) -> None:
    """Of the copy, the probabilities, the image, the mask and a pyramid, in one run."""
    plan = read_plan(workspace)
    of_work = "work/*/*.ome.zarr"
    before = {f: files_in(f) for f in [*workspace.root.glob(of_work), workspace.result]}
    target = create_probabilities(plan, workspace)
    written = {
        file: file.stat().st_ino for file in workspace.root.rglob("c/**/*") if file.is_file()
    }
    (copy,) = (
        f for f in workspace.root.glob("work/ingest-*/image.ome.zarr/0/c/**/*") if f.is_file()
    )
    damaged = {
        "image copy, block 0": copy,
        "probabilities, block 3": target.array.shard_file(3),
        "probabilities, block 39": target.array.shard_file(39),
        "image level 1, block 0": workspace.result / "1/c/0/0",
        "mask level 0, block 2": workspace.result / "labels/mask/0/c/0/2",
        "mask level 1, block 0": workspace.result / "labels/mask/1/c/0/0",
    }
    # The image of a result is a link to the copy: damaged with it, but not deleted.
    is_linked = copy.samefile(workspace.result / "0/c/0/0") and damage is not Path.unlink
    linked = {"image level 0, block 0"} if is_linked else set()
    for file in damaged.values():
        damage(file)
    proof = verified(workspace, source, machines)
    assert set(proof["made_again"]) == set(damaged) | linked
    for folder, files in before.items():
        files.pop("zarr.json")  # of the result: it holds the proof now
        assert {n: c for n, c in files_in(folder).items() if n != "zarr.json"} == files
    other = {file for file in written if file not in damaged.values()} - {
        workspace.result / "0/c/0/0"
    }
    assert {file: file.stat().st_ino for file in other} == {f: written[f] for f in other}


def test_what_cannot_be_made_again_is_not_deleted(
    workspace: Workspace, source: SourceSpec, machines: Machines, tmp_path: Path
) -> None:
    """A damaged block is an error to its readers; a missing one would be zeros to other tools."""
    (copy,) = (
        f for f in workspace.root.glob("work/ingest-*/image.ome.zarr/0/c/**/*") if f.is_file()
    )
    flipped(copy)
    before = files_in(workspace.result)
    with pytest.raises(SourceError):
        verified(workspace, replace(source, path=str(tmp_path / "gone.tif")), machines)
    assert files_in(workspace.result) == before


def test_a_result_of_another_run_is_refused(
    workspace: Workspace, source: SourceSpec, machines: Machines
) -> None:
    zarr.open_group(workspace.result, mode="r+").update_attributes({"unet": {"run": "another"}})
    with pytest.raises(StoreError, match="or replaced by another run of the same name"):
        verified(workspace, source, machines)


def test_the_proof_is_in_the_result(
    workspace: Workspace, source: SourceSpec, machines: Machines
) -> None:
    proof = verified(workspace, source, machines)
    assert proof == zarr.open_group(workspace.result, mode="r").attrs["unet"]["verify"]
    assert proof["passed"]
    assert proof["blocks"] == 6
    assert proof["core"] != [1, 1, 32, 64]
    assert proof["agreement"]["largest_difference"] == proof["tolerance"] == 0
    assert proof["agreement"]["mask_pixels_differ"] == 0
    assert proof["numerics"]["processors"] == proof["numerics"]["verified_by"]
    assert proof["numerics"]["processors"] == [processor_name("cpu")]
    assert proof["made_again"] == []


def test_a_store_of_something_else_fails_the_proof(
    workspace: Workspace, source: SourceSpec, machines: Machines
) -> None:
    """One pixel a hair off, as it was recorded: only predicting again can tell."""
    plan = read_plan(workspace)
    probabilities = probabilities_array(plan, workspace).open()
    values = np.array(probabilities.read(plan.grid.box(5)))
    values[0, 0, 0, 7, 9] = np.nextafter(values[0, 0, 0, 7, 9], np.float32(2))
    with Ledger(create_probabilities(plan, workspace).ledger, "another") as ledger:
        ledger.add(5, probabilities.write_block(5, values))
    with pytest.raises(RunError, match=r"through any windows, but of 126000 pixels .* is [1-9]"):
        verified(workspace, source, machines, blocks=1000)
    assert not proof_of(workspace)["passed"]
    assert not zarr.open_group(workspace.result, mode="r").attrs["unet"]["verify"]["passed"]


def test_a_mask_that_is_not_what_was_predicted_is_made_again(
    workspace: Workspace, source: SourceSpec, machines: Machines
) -> None:
    mask = zarr.open_array(workspace.result / "labels/mask/0", mode="r+")
    before = mask[...]
    mask[100, 100] = 1 - mask[100, 100]
    assert verified(workspace, source, machines)["made_again"] == ["mask level 0, block 5"]
    assert np.array_equal(mask[...], before)


# --- What is predicted again ----------------------------------------------------------------------

SIDES = st.integers(1, 200)


@given(sides=st.tuples(SIDES, SIDES), block=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_blocks_of_the_proof_partition_the_image_and_straddle_the_run(
    sides: tuple[int, int], block: tuple[int, int]
) -> None:
    plan = plan_of((1, 1, *sides), (1, 1, 16 * block[0], 16 * block[1]))
    covered = np.zeros(sides, int)
    boxes = [shifted_box(n, plan) for n in range(int(np.prod(shifted_grid(plan))))]
    for box in boxes:
        assert all(a % s == 0 for a, s in zip(box.start, plan.lattice.stride, strict=True))
        assert all(n <= b for n, b in zip(box.shape, plan.block, strict=True))
        covered[box.slices[2:]] += 1
    assert (covered == 1).all()
    for axis in (2, 3):
        if plan.block[axis] > plan.lattice.stride[axis]:
            faces = set(range(plan.block[axis], plan.image.shape[axis], plan.block[axis]))
            inside = {f for f in faces for b in boxes if b.start[axis] < f < b.stop[axis]}
            assert inside == faces
    assert other_core(plan) != plan.core


@given(blocks=st.integers(1, 80), seed=st.integers(0, 5))
def test_the_sample_is_seeded_and_has_no_block_twice(blocks: int, seed: int) -> None:
    plan = plan_of((1, 1, 100, 150), (1, 1, 16, 32))
    picked = sample_blocks(plan, blocks, seed)
    assert picked == sample_blocks(plan, blocks, seed)
    assert len(set(picked)) == len(picked) == min(blocks, int(np.prod(shifted_grid(plan))))
    assert max(picked) < int(np.prod(shifted_grid(plan)))


def plan_of(shape: tuple[int, ...], block: tuple[int, ...]) -> Plan:
    image = IngestedImage(
        *("nowhere", True, "0", "yx", None),
        shape=shape,
        dtype="uint8",
        channel_names=("0",),
        pixel_size={},
        origin={},
        block=None,
        data_range=(0.0, 255.0),
        contrast_limits=((0.0, 255.0),),
        digest="of the test",
        file_signature=None,
    )
    request = SplitOptions(memory=GENEROUS, shard=block[2:], chunk=block[2:])
    model = ModelSpec(
        folder=Path("nowhere"),
        name="tiny",
        architecture=Architecture.of(classes=2, width=2, depth=1),
        classes=("background", "class-1"),
        channels=("0",),
        normalisation=Normalisation("zscore"),
        pixel_size=None,
        weights=Path("nowhere"),
        weights_sha256="",
    )
    return make_plan(image, model, ((0.0,), (1.0,)), request, 1)


# --- The test window -------------------------------------------------------------------------


@pytest.mark.parametrize("off", [np.spacing(np.float32(0.5)), np.nan])
def test_a_worker_that_computes_something_else_may_not_write(
    off: float, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    plan = planned(picture(80, 90), "yx", tiny_model, tmp_path)
    job = PredictJob("test window", plan, ArrayRef(tmp_path, "yx"), "cpu", threads=2)
    computed = SelfTest.of(job.runner(), plan, processor_name("cpu"))
    CheckedPredictJob(job, computed).checked_runner()
    values = (float(np.float32(computed.values[0] + off)), *computed.values[1:])
    other = replace(computed, values=values)
    with pytest.raises(WorkerError, match=r"compute the test window as CPU .* within 0.0"):
        CheckedPredictJob(job, other).checked_runner()


def test_only_another_kind_of_processor_may_differ_by_rounding(
    tiny_model: ModelSpec, tmp_path: Path
) -> None:
    plan = planned(picture(80, 90), "yx", tiny_model, tmp_path)
    assert tolerance(plan, {"CPU one"}) == 0
    for kinds in ({"CPU one", "CPU two"}, {"CPU one", "GPU"}, {"GPU"}):
        assert tolerance(plan, kinds) == plan.tolerance == 1e-4
    assert tolerance(replace(plan, precision="bfloat16"), {"CPU one"}) == plan.tolerance
