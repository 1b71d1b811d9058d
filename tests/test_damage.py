"""Every kind of file of a run, damaged in every kind of way: harmless, mended or named.

`scripts/benchmark/damage.py` does the same at random, with the real snakemake.
"""

import os
import random
import re
import shutil

import pytest
import tifffile
from conftest import make_tiny_model, picture
from support import GENEROUS, run_stages

from scripts.benchmark.damage import FINGERPRINT, WAYS, find_victim, is_right, read_levels
from unet.errors import UserError
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch, verify
from unet.storage.workspace import Workspace

pytestmark = pytest.mark.slow

CUT = {"shard": (64, 64), "chunk": (32, 32), "core": (32, 64)}
WORK = [
    *("ingest.json", "split.json", "predict/1-of-1.json", "histograms.npy"),
    "work/ingest/image.ome.zarr/zarr.json",
    "work/ingest/image.ome.zarr/0/zarr.json",
    "work/ingest/image.ome.zarr/0/c/0/0/0",
    "work/ingest/ledger/ingest.jsonl",
    "work/predict/probabilities.ome.zarr/zarr.json",
    "work/predict/probabilities.ome.zarr/0/zarr.json",
    "work/predict/probabilities.ome.zarr/0/c/0/1/4/1",
    "work/predict/ledger/slab-1-of-1.jsonl",
    "work/predict/self_test.json",
]
RESULT = [
    *("stitch.json", "written/stitch.json"),
    *("image.ome.zarr/zarr.json", "image.ome.zarr/labels/zarr.json"),
    *("image.ome.zarr/labels/mask/zarr.json", "image.ome.zarr/0/zarr.json"),
    *("image.ome.zarr/0/c/0/0/0", "image.ome.zarr/1/zarr.json", "image.ome.zarr/1/c/0/0/0"),
    "image.ome.zarr/labels/mask/0/zarr.json",
    "image.ome.zarr/labels/mask/0/c/1/3/0",
    "image.ome.zarr/labels/mask/1/zarr.json",
    "image.ome.zarr/labels/mask/1/c/0/0/0",
    "work/stitch/ledger/image/1/stitch.jsonl",
    "work/stitch/ledger/mask/0/stitch.jsonl",
    "work/stitch/ledger/mask/1/stitch.jsonl",
]
EMPTY_FILES = {"work/lock", "work/predict/lock"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, picture(2, 600, 70), metadata={"axes": "ZYX"})
    return SourceSpec(str(path))


@pytest.fixture(scope="module")
def older(tmp_path_factory, source, machines):
    """A run of the same image with another model and threshold."""
    workspace = Workspace(tmp_path_factory.mktemp("older") / "image")
    model = make_tiny_model(tmp_path_factory.mktemp("model") / "older", seed=3)
    run_stages(source, model, workspace, 1, StitchOptions(threshold=0.45), machines, **CUT)
    return workspace


class Run:
    """A finished run, which is put back as it was before each damage."""

    def __init__(self, root, source, model, machines):
        self.workspace, self.source, self.model, self.machines = root, source, model, machines
        self.kept = self.workspace.root.with_name("kept")
        self.half = self.workspace.root.with_name("half")
        self.make_all()
        shutil.copytree(self.workspace.root, self.kept)
        self.expected = read_levels(self.workspace.result)
        shutil.copytree(self.workspace.root, self.half)
        shutil.rmtree(self.half / "image.ome.zarr")
        shutil.rmtree(self.half / "written")
        (self.half / "stitch.json").unlink()

    def put_back(self, kept):
        shutil.rmtree(self.workspace.root)
        shutil.copytree(kept, self.workspace.root)

    def make_all(self):
        run_stages(self.source, self.model, self.workspace, machines=self.machines, **CUT)

    def finish(self):
        """What Snakemake runs where the manifests of the earlier stages are there."""
        for stage, make in {
            "ingest.json": lambda: ingest.run(self.source, self.workspace, self.machines),
            "split.json": lambda: split.run(
                self.workspace, str(self.model.folder), SplitOptions(memory=GENEROUS, **CUT), 1
            ),
            "predict/1-of-1.json": lambda: predict.run(self.workspace, 0, 1, self.machines, "cpu"),
        }.items():
            if not (self.workspace.root / stage).exists():
                make()
        stitch.run(self.workspace, StitchOptions(), self.machines)

    def verify(self):
        asked = verify.VerifyOptions(self.source, StitchOptions(), blocks=2)
        verify.run(self.workspace, asked, verify.StageMachines(self.machines, self.machines, "cpu"))

    def find(self, kind, older):
        """The file of a kind; a kind is a path without fingerprints."""
        root = self.workspace.root
        (file,) = (f for f in files(root) if kind_of(f, root) == kind)
        return find_victim(file, root, older.root)


def files(root):
    return [file for file in sorted(root.rglob("*")) if file.is_file()]


def kind_of(file, root):
    return FINGERPRINT.sub("", file.relative_to(root).as_posix())


@pytest.fixture(scope="module")
def run(tmp_path_factory, source, tiny_model, machines):
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "image")
    return Run(workspace, source, tiny_model, machines)


def test_no_kind_of_file_is_forgotten(run):
    root = run.kept
    shard = re.compile(r"(?<=/c/)[\d/]+$")
    known = {shard.sub("*", kind) for kind in [*WORK, *RESULT]}
    there = {shard.sub("*", kind_of(file, root)) for file in files(root)}
    assert there - {"work/lock"} == known


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", [*WORK, *RESULT])
def test_a_damage_of_a_finished_run_is_harmless_mended_or_named(run, older, kind, way):
    """By `verify`, also where the damaged file looks as before; if it ends, by running again."""
    run.put_back(run.kept)
    victim = run.find(kind, older)
    look = victim.file.stat()
    way(victim, random.Random(0))
    if victim.file.exists() and victim.file.stat().st_size == look.st_size:
        os.utime(victim.file, ns=(look.st_atime_ns, look.st_mtime_ns))
    try:
        run.verify()
    except UserError as error:
        assert_named(error, victim.file)
        end_well(run, victim.file)
    assert is_right(run.workspace.result, run.expected)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", WORK)
def test_a_damage_of_a_half_done_run_is_harmless_mended_or_named(run, older, kind, way):
    run.put_back(run.half)
    victim = run.find(kind, older)
    way(victim, random.Random(0))
    try:
        run.finish()
        run.verify()
    except UserError as error:
        assert_named(error, victim.file)
        end_well(run, victim.file)
    assert is_right(run.workspace.result, run.expected)


def assert_named(error, file):
    """The message has the file, or its array or folder, or what stands in it."""
    array = next((each for each in file.parents if each.name.isdecimal()), file.parent)
    said = {"self_test.json": "test window", "stitch.json": "present configuration"}
    names = [str(file), str(array), " block ", said.get(file.name, str(file))]
    assert any(name in str(error) for name in names), str(error)


def end_well(run, file):
    """What an error advises: to run again, at most without the damaged file."""
    try:
        run.make_all()
        run.verify()
    except UserError as error:
        assert_named(error, file)
        file.unlink(missing_ok=True)
        run.make_all()
        run.verify()
