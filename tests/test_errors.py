"""THE TABLE: each bad input with the sentence it gets.

Every case is run as a script of the workflow runs it, inside `told`: it has to end with exit status
1 and one sentence, without a traceback, and all that an earlier run left has to be there as it was.
Some are run again through snakemake itself, from the configuration to the exit status.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr
from conftest import REPOSITORY, ModelMaker, Workflow, files_in, make_tiny_model, picture

from unet.config import read_config
from unet.console import report_to
from unet.execution.machines import Machines
from unet.model.folder import ModelSpec, file_sha256
from unet.planning.options import SplitOptions, StitchOptions
from unet.planning.result_layout import FOLDERS, MASK
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.stages.manifests import read_plan
from unet.stages.probabilities import create_probabilities, probabilities_group
from unet.storage import ownership
from unet.storage.ledger import recorded
from unet.storage.workspace import Workspace

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
REQUEST = SplitOptions(memory=10**9, shard=(64, 64), chunk=(32, 32))
NOBODY = 65534


def run_all(source: SourceSpec, model: Path, workspace: Workspace, machines: Machines) -> None:
    ingest.run(source, workspace, machines)
    split.run(workspace, str(model), REQUEST, slabs=1)
    predict.run(workspace, 0, 1, machines, "cpu")
    stitch.run(workspace, StitchOptions(), machines)


def mask_of(workspace: Workspace) -> Any:
    return zarr.open_array(workspace.result / FOLDERS[MASK] / "0", mode="r")[:]


def assert_refused(action: Callable[[], Any], kind: str, message: str, log: Path) -> None:
    """`action` ends a script with status 1 and a sentence of this kind that says `message`."""
    with pytest.raises(SystemExit) as ended, report_to(str(log)):
        action()
    assert ended.value.code == 1
    said = log.read_text(encoding="utf-8")
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert re.search(rf"^\d\d:\d\d:\d\d {kind}: .*{message}", last), last
    assert last.endswith((".", "?"))


def assert_kept(before: dict[str, bytes], folder: Path) -> None:
    """Every file that was there is there, with the same bytes; others may have come."""
    after = files_in(folder)
    assert [name for name in before if before[name] != after.get(name)] == []


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    small_image: Path,
    tiny_model: ModelSpec,
    machines: Machines,
) -> Workspace:
    """An earlier run, whole. Read it only; tests work on a copy."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "tiny")
    run_all(SourceSpec(str(small_image)), tiny_model.folder, workspace, machines)
    assert 0.1 < mask_of(workspace).mean() < 0.9, "a mask of one class would not show a difference"
    return workspace


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the earlier run, to be disturbed."""
    shutil.copytree(finished.root, tmp_path / "results" / finished.name)
    return Workspace(tmp_path / "results" / finished.name)


# --- Images -------------------------------------------------------------------------------------

Writer = Callable[[Path], Path]


def file(name: str, content: bytes) -> Writer:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def npy(image: Any) -> Writer:
    def write(folder: Path) -> Path:
        np.save(folder / "image.npy", image)
        return folder / "image.npy"

    return write


def tiff(image: Any, **options: Any) -> Writer:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "image.tif", image, **options)
        return folder / "image.tif"

    return write


def truncated_tiff(folder: Path) -> Path:
    path = tiff(picture(150, 210), compression="zlib", rowsperstrip=32)(folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


def with_one(value: float) -> Any:
    image = picture(100, 100, dtype="float32")
    image[70, 30] = value
    return image


def zarr_array(image: Any) -> Writer:
    def write(folder: Path) -> Path:
        zarr.create_array(folder / "image.zarr", data=image, dimension_names=["y", "x"])
        return folder / "image.zarr"

    return write


def damaged_zarr(folder: Path) -> Path:
    path = zarr_array(picture(100, 100))(folder)
    (path / "c" / "0" / "0").write_bytes(b"damaged")
    return path


PAGES = {"metadata": None, "photometric": "minisblack"}
IMAGES: dict[str, tuple[Writer, str]] = {
    "not an image": (file("i.tif", b"hello"), r"i\.tif is not an image .* it starts with b'hello'"),
    "truncated TIFF": (truncated_tiff, r"image\.tif ends at byte \d+, but .* cut short"),
    "zero-size": (npy(np.zeros((0, 9), "u1")), r"holds no pixels: its shape is \(0, 9\)"),
    "NaN": (npy(with_one(np.nan)), "Expected finite pixel .* got NaN .*Replace them"),
    "infinity": (tiff(with_one(np.inf)), "Expected finite pixel values in .*tif, got NaN or inf"),
    "NaN in Zarr": (
        zarr_array(with_one(np.nan)),
        "Expected finite pixel values in .*zarr, got NaN",
    ),
    "damaged Zarr": (damaged_zarr, r"readable chunks in .*image\.zarr.* one is damaged"),
    "complex": (npy(np.zeros((9, 9), "c8")), "holds complex64 values; expected booleans, integers"),
    "unknown axes": (tiff(picture(3, 9, 9), **PAGES), r"its dimension of length 3 is: .* Set axes"),
    "missing path": (lambda folder: folder / "no.tif", r"no\.tif does not exist.* misspelt"),
    "inside a file": (lambda folder: file("a", b"")(folder) / "b", "does not exist"),
    "empty folder": (lambda folder: folder, "holds neither Zarr metadata nor TIFF"),
    "empty glob": (lambda folder: folder / "*.png", r"\*\.png matches no file"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image(name: str, workspace: Workspace, machines: Machines, tmp_path: Path) -> None:
    write, message = IMAGES[name]
    (tmp_path / "images").mkdir()
    source = SourceSpec(str(write(tmp_path / "images")))
    before = files_in(workspace.root)
    kinds = {"damaged Zarr": "StoreError", "unknown axes": "AxesError"}
    kind = kinds.get(name, "SourceError")
    assert_refused(lambda: ingest.run(source, workspace, machines), kind, message, tmp_path / "log")
    assert_kept(before, workspace.root)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions hold for nobody but root; so do not be root."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_image_that_may_not_be_read(
    kind: str, workspace: Workspace, machines: Machines, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.mkdir() if kind == "folder" else path.touch()
    before = files_in(workspace.root)
    path.chmod(0)
    public = [tmp_path, *tmp_path.parents[:2]]  # pytest makes its folders for one user only
    modes = [folder.stat().st_mode for folder in public]
    for folder in public:
        folder.chmod(0o755)

    def run() -> None:
        with ordinary_user():
            ingest.run(SourceSpec(str(path)), workspace, machines)

    try:
        message = "(may not be read|Permission denied)"
        assert_refused(run, "SourceError", message, tmp_path / "log")
    finally:
        path.chmod(0o700)
        for folder, mode in zip(public, modes, strict=True):
            folder.chmod(mode)
    assert_kept(before, workspace.root)


# --- What the image, the model and the settings have to agree on ---------------------------------

PLANS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "channels": ({"in_channels": 3}, {}, r"ModelError: Expected an image with 3 channels .* got 1"),
    "3D model": (
        {"dims": 3},
        {},
        r"ModelError: Expected a stack for the 3D .* plane of shape \(15",
    ),
    "memory": ({}, {"memory": 1000}, "PlanError: .* the smallest window makes it need .* memory"),
    "shard": ({}, {"shard": (64, 33)}, r"PlanError: Expected the shard \(64, 33\) .* multiple of"),
    "chunk": ({}, {"chunk": (31, 32)}, r"PlanError: .* chunk \(31, 32\) .* multiple of \(2, 2\)"),
    "core": ({}, {"core": (1, 2)}, r"PlanError: .* window core \(1, 2\) .* multiple of \(2, 2\)"),
    "core of planes": ({}, {"core": (2, 32, 32)}, r"PlanError: .* core \(2, 32, 32\) to be 1 on"),
    "core of times": ({}, {"core": (2, 1, 32, 32)}, r"PlanError: .* to be 1 on each axis but the"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_cannot_be(
    name: str, workspace: Workspace, make_model: ModelMaker, tmp_path: Path
) -> None:
    network, asked, message = PLANS[name]
    folder, request = str(make_model(**network).folder), replace(REQUEST, **asked)
    before = files_in(workspace.root)
    kind, message = message.split(": ", maxsplit=1)
    assert_refused(
        lambda: split.run(workspace, folder, request, slabs=1), kind, message, tmp_path / "log"
    )
    assert_kept(before, workspace.root)


def test_a_threshold_with_three_classes(
    workspace: Workspace, make_model: ModelMaker, machines: Machines, tmp_path: Path
) -> None:
    split.run(workspace, str(make_model(classes=3).folder), REQUEST, slabs=1)
    before = files_in(workspace.root)
    assert_refused(
        lambda: stitch.run(workspace, StitchOptions(threshold=0.3), machines),
        *("ConfigError", "`threshold` only with a model of two classes, .* has 3"),
        tmp_path / "log",
    )
    assert_kept(before, workspace.root)


# --- Models -------------------------------------------------------------------------------------


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def describe(folder: Path, **changes: Any) -> None:
    """Change keys of model.yaml; its `weights` stand for the file that is there."""
    path = folder / "model.yaml"
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    (weights,) = folder.glob("weights.*")
    said["weights"] = {"file": weights.name, "sha256": file_sha256(weights)}
    path.write_text(yaml.safe_dump({**said, **changes}), encoding="utf-8")


def other_bytes(folder: Path) -> None:
    with (folder / "weights.safetensors").open("ab") as weights:
        weights.write(b"\0")


def truncated(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 500)
    describe(folder)


def truncated_pt(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    torch.save({"a": torch.zeros(100)}, folder / "weights.pt")
    os.truncate(folder / "weights.pt", 500)
    describe(folder)


def wider(folder: Path) -> None:
    describe(folder, network={"width": 4, "depth": 1})


def not_finite(folder: Path) -> None:
    make_tiny_model(folder)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    weights.write_bytes(content)
    describe(folder)


def with_code(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    torch.save({"down.0.0.weight": Payload(folder / "executed")}, folder / "weights.pt")
    torch.load(folder / "weights.pt", weights_only=False)
    (folder / "executed").rmdir()  # so the payload does what it should
    describe(folder)


def yaml_with_code(folder: Path) -> None:
    said = f"name: !!python/object/apply:os.mkdir ['{folder}/executed']\n"
    yaml.unsafe_load(said)
    (folder / "executed").rmdir()
    (folder / "model.yaml").write_text(said)


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such model": (shutil.rmtree, "Expected a model's name or the path .* fluo-nuclei"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "found no file there"),
    "wrong hash": (other_bytes, "to have the sha256 .* is damaged or is another version"),
    "truncated": (truncated, r"does not read as \.safetensors: .* probably truncated"),
    "truncated .pt": (truncated_pt, r"does not read as \.pt: .* probably truncated"),
    "wrong shape": (wider, r"down\.0\.0\.bias is \(2,\) and should be \(4,\).* another model"),
    "NaN": (not_finite, "holds NaN or infinity"),
    "a pickle with code": (with_code, "a pickle that holds code or objects, which is never exec"),
    "YAML with code": (yaml_with_code, "Expected YAML in .* does not parse"),
    "not a description": (lambda f: (f / "model.yaml").write_text("[1]"), "to describe a model"),
    "unknown key": (lambda f: describe(f, licens="MIT"), "'licens' was unexpected"),
    "even kernel": (lambda f: describe(f, network={"kernel": 2}), "Expected odd kernel sizes"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model(name: str, workspace: Workspace, machines: Machines, tmp_path: Path) -> None:
    damage, message = MODELS[name]
    folder = tmp_path / "model"
    make_tiny_model(folder, seed=1)
    damage(folder)
    before = files_in(workspace.result)

    def run() -> None:
        split.run(workspace, str(folder), REQUEST, slabs=1)
        predict.run(workspace, 0, 1, machines, "cpu")

    assert_refused(run, "ModelError", message, tmp_path / "log")
    assert not (folder / "executed").exists(), "code in a model was run"
    assert_kept(before, workspace.result)


def test_a_model_that_changed_since_the_split(
    workspace: Workspace, machines: Machines, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder, seed=1)
    split.run(workspace, str(folder), REQUEST, slabs=1)
    make_tiny_model(folder, seed=2)
    before = files_in(workspace.root)
    assert_refused(
        lambda: predict.run(workspace, 0, 1, machines, "cpu"),
        *("ModelError", "as it was when the image was split, but .* changed since"),
        tmp_path / "log",
    )
    assert_kept(before, workspace.root)


# --- Stores -------------------------------------------------------------------------------------


def remove_shard(workspace: Workspace, block: int) -> None:
    plan = read_plan(workspace)
    create_probabilities(plan, workspace).array.shard_file(block).unlink()


def truncate_shard(workspace: Workspace, block: int) -> None:
    plan = read_plan(workspace)
    shard = create_probabilities(plan, workspace).array.shard_file(block)
    os.truncate(shard, shard.stat().st_size - 1)


@pytest.mark.parametrize("damage", [remove_shard, truncate_shard])
def test_a_hole_between_predict_and_stitch(
    damage: Callable[[Workspace, int], None],
    workspace: Workspace,
    machines: Machines,
    tmp_path: Path,
) -> None:
    """It is named, the result stays, and what the sentence advises mends it."""
    earlier = files_in(workspace.root / "work"), files_in(workspace.result)
    damage(workspace, 5)
    assert_refused(
        lambda: stitch.run(workspace, StitchOptions(), machines),
        *("StoreError", r"1 are missing .* block 5 \(0:1 x 0:1 x 64:128 x 64:128\).*forcerun pred"),
        tmp_path / "log",
    )
    assert files_in(workspace.result) == earlier[1]
    predict.run(workspace, 0, 1, machines, "cpu")
    shutil.rmtree(workspace.result)
    stitch.run(workspace, StitchOptions(), machines)
    assert_kept(
        {n: c for n, c in earlier[0].items() if "/ledger" not in n}, workspace.root / "work"
    )
    assert files_in(workspace.result) == earlier[1]


def foreign_array(workspace: Workspace) -> None:
    group = probabilities_group(read_plan(workspace), workspace)
    shutil.rmtree(group / "0")
    zarr.create_array(group / "0", data=np.zeros((1, 9, 9), "u1"))


def foreign_axes(workspace: Workspace) -> None:
    group = probabilities_group(read_plan(workspace), workspace)
    shutil.rmtree(group / "0")
    zarr.create_array(group / "0", data=np.zeros((9, 9), "u1"))


def old_manifest(workspace: Workspace) -> None:
    workspace.manifest("split").write_text("{}")


STORES: dict[str, tuple[Callable[[Workspace], Any], str]] = {
    "foreign array": (foreign_array, "got .*uint8.*: a store of another run. Move it away"),
    "foreign axes": (
        foreign_axes,
        r"got .*'shape': \[9, 9\].*: a store of another run. Move",
    ),
    "other manifest": (old_manifest, "to be a manifest of this version, .* Delete it and run"),
    "no manifest": (
        lambda workspace: workspace.manifest("split").unlink(),
        "and found none: its stage",
    ),
}


@pytest.mark.parametrize("stage", ["predict", "stitch"])
@pytest.mark.parametrize("name", STORES)
def test_what_is_not_ours(
    name: str, stage: str, workspace: Workspace, machines: Machines, tmp_path: Path
) -> None:
    damage, message = STORES[name]
    damage(workspace)
    before = files_in(workspace.root)

    def run() -> None:
        if stage == "predict":
            predict.run(workspace, 0, 1, machines, "cpu")
        else:
            stitch.run(workspace, StitchOptions(), machines)

    assert_refused(run, "StoreError", message, tmp_path / "log")
    assert_kept(before, workspace.root)


def test_two_runs_on_one_scheduler_with_images_of_one_name(
    machines: Machines, tmp_path: Path
) -> None:
    images = {name: picture(100, 100, seed=seed) for seed, name in enumerate(("left", "right"))}
    for name, image in images.items():
        np.save(tmp_path / f"{name}.npy", image)

    def run(name: str) -> Any:
        workspace = Workspace(tmp_path / name / "same")
        ingest.run(SourceSpec(str(tmp_path / f"{name}.npy")), workspace, machines)
        (copied,) = (workspace.root / "work").glob("ingest-*/image.ome.zarr")
        return zarr.open_array(copied / "0", mode="r")[:]

    with ThreadPoolExecutor(2) as pool:
        for name, found in zip(images, pool.map(run, images), strict=True):
            np.testing.assert_array_equal(found, images[name])


# --- A full disk --------------------------------------------------------------------------------

FULL = r"Expected free space on the disk, but it is full: .* What was done is kept\. Make room"


LITTLE_ROOM = "Expected enough free space .* too little: .* What was done is kept"


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[None]:
    """A disk of 2 MB at `folder`; root may mount one, others where sudo asks for nothing."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    mount = [*sudo, "mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    if shutil.which(mount[0]) is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root; the test with /dev/full needs no root")
    try:
        yield
    finally:
        subprocess.run([*sudo, "umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk up to `leave` bytes with one file."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - leave))
    return disk / "filler"


@pytest.mark.parametrize(
    ("stage", "leave"),
    [
        ("ingest", 0),
        ("ingest", 24_000),
        ("ingest", 300_000),
        ("predict", 60_000),
        ("stitch", 0),
        ("stitch", 24_000),
    ],
)
def test_a_full_disk(
    stage: str,
    leave: int,
    small_image: Path,
    tiny_model: ModelSpec,
    finished: Workspace,
    machines: Machines,
    tmp_path: Path,
) -> None:
    """The disk fills up while a stage writes; with room again the run ends in the same bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk):
        workspace = Workspace(disk / "tiny")
        stages: dict[str, Callable[[], Any]] = {
            "ingest": lambda: ingest.run(SourceSpec(str(small_image)), workspace, machines),
            "split": lambda: split.run(workspace, str(tiny_model.folder), REQUEST, slabs=1),
            "predict": lambda: predict.run(workspace, 0, 1, machines, "cpu"),
            "stitch": lambda: stitch.run(workspace, StitchOptions(), machines),
        }
        for name, run in stages.items():
            if name == stage:
                filler = fill(disk, leave)
                # With nothing left it is told before a byte is written, where pixels come first.
                told = FULL if leave else f"({FULL}|{LITTLE_ROOM})"
                assert_refused(run, "RunError", told, tmp_path / "log")
                filler.unlink()
            run()
        plan = read_plan(workspace)
        assert_kept(files_in(finished.result), workspace.result)
        done = [block for block, _ in recorded(create_probabilities(plan, workspace).ledger)]
        assert sorted(done) == list(range(plan.blocks)), "a block was predicted twice"


def test_a_full_disk_where_the_plan_is_written(
    workspace: Workspace, tiny_model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers every write with "no space left", whoever writes."""
    before = files_in(workspace.root)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")

    def run() -> None:
        split.run(workspace, str(tiny_model.folder), replace(REQUEST, core=(2, 2)), slabs=1)

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_partial", lambda _: full)
        assert_refused(run, "RunError", FULL, tmp_path / "log")
    assert_kept(before, workspace.root)
    run()
    assert read_plan(workspace).core == (1, 1, 2, 2)


# --- The configuration --------------------------------------------------------------------------


def config(image: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A right configuration, with keys of its image changed and sections added."""
    right = {"name": "tiny", "path": "image.tif", "model": "fluo-nuclei"}
    return {"images": [{**right, **(image or {})}], **sections}


SIZES = r"split\.shard: .* Expected: Size of a shard"
CONFIGS: dict[str, tuple[Any, str]] = {
    "typo": (config(split={"memroy": 4}), "split: unknown key 'memroy'; did you mean 'memory'"),
    "typo of an image": (config({"axis": "zyx"}), r"images\[0\]: unknown key 'axis'; .* 'axes'"),
    "typo of a section": (config(stich={}), "unknown key 'stich'; did you mean 'stitch'"),
    "far key": (
        config(gpus=4),
        "unknown key 'gpus'; known are images, stores, split, predict, stitch, verify",
    ),
    "wrong type": (config(split={"memory": "8GB"}), r"split\.memory: '8GB' is not of .* gigabytes"),
    "no number": (config(split={"memory": float("nan")}), r"split\.memory: nan is not of type"),
    "one size": (config(split={"shard": 64}), SIZES),
    "too few sizes": (config(split={"shard": [64]}), SIZES),
    "an empty section": (config(split=None), "split: None is not of type 'object'"),
    "device": (
        config(predict={"device": "cuda"}),
        r"'cuda' is not one of \['auto', 'gpu', 'cpu'\]",
    ),
    "threshold": (config(stitch={"threshold": 50}), r"threshold: 50 is greater than .* of 1"),
    "no images": ({}, "'images' is a required property"),
    "nothing": (None, "the configuration: None is not of type 'object'"),
    "empty images": ({"images": []}, r"images: \[\] should be non-empty"),
    "no model": ({"images": [{"name": "a", "path": "b"}]}, "'model' is a required property"),
    "twice": (
        {"images": config()["images"] * 2},
        "a different name for each image, but tiny occurs",
    ),
    "path as name": (config({"name": "../x"}), r"images\[0\]\.name: '\.\./x' does not match"),
    "two levels": (config({"level": 0, "level_pixel_size": 1}), "`level` or `level_pixel_size`"),
    "axes": (config({"axes": "xyw"}), "'xyw' does not match .* one letter of tczyxs"),
    "pixel size": (config({"pixel_size": {"u": 1}}), "pixel_size: unknown key 'u'; known are z, y"),
    "channel": (config({"channels": [-1]}), r"channels\[0\]: -1 is less than the minimum of 0"),
    "missing image": (config({"path": "no.tif"}), r"images\[0\] \(tiny\): no\.tif does not exist"),
    "empty glob": (config({"path": "*.jpg"}), r"images\[0\] \(tiny\): \*\.jpg matches no file"),
    "unknown model": (
        config({"model": "nope"}),
        r"\(tiny\): Expected a model's name .*'nope'\. Th",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_configuration(name: str, tmp_path: Path) -> None:
    raw, message = CONFIGS[name]
    assert_refused(
        lambda: read_config(raw, SCHEMA, rule_outputs=["image.tif"]),
        *("ConfigError", message, tmp_path / "log"),
    )


# --- The whole workflow, as a user runs it ------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(
    tmp_path_factory: pytest.TempPathFactory,
    small_image: Path,
    tiny_model: ModelSpec,
    run_workflow: Workflow,
) -> tuple[Path, dict[str, Any]]:
    """A folder in which the workflow ran, and its configuration. Read it only."""
    folder = tmp_path_factory.mktemp("earlier")
    said = config(
        {"path": str(small_image), "model": str(tiny_model.folder)},
        split={"shard": [64, 64], "chunk": [32, 32]},
        predict={"device": "cpu"},
    )
    ended = run_workflow(said, folder)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "results" / "tiny" / "tiny.ome.zarr" / "zarr.json").exists()
    return folder, said


def change_typo(said: dict[str, Any], folder: Path, make_model: ModelMaker) -> None:
    del folder, make_model
    said["stitch"] = {"treshold": 0.4}


def change_image(said: dict[str, Any], folder: Path, make_model: ModelMaker) -> None:
    del make_model
    said["images"][0]["path"] = str(npy(with_one(np.nan))(folder))


def change_model(said: dict[str, Any], folder: Path, make_model: ModelMaker) -> None:
    del folder
    said["images"][0]["model"] = str(make_model(in_channels=3).folder)


def change_weights(said: dict[str, Any], folder: Path, make_model: ModelMaker) -> None:
    del make_model
    make_tiny_model(folder / "model")
    other_bytes(folder / "model")
    said["images"][0]["model"] = str(folder / "model")


def change_shard(said: dict[str, Any], folder: Path, make_model: ModelMaker) -> None:
    del make_model
    workspace = Workspace(folder / "results" / "tiny")
    remove_shard(workspace, 5)
    said["stitch"] = {"threshold": 0.4}


CHANGES: dict[str, tuple[Callable[[dict[str, Any], Path, ModelMaker], None], str]] = {
    "typo": (change_typo, "The configuration is wrong.*'treshold'; did you mean 'threshold'"),
    "damaged weights": (change_weights, r"wrong\. images\[0\] \(tiny\): .* to have the sha256"),
    "NaN": (change_image, r"SourceError: Expected finite pixel values in .*image\.npy"),
    "channels": (change_model, "ModelError: Expected an image with 3 channels .* got 1"),
    "hole": (change_shard, r"StoreError: .* 1 are missing or damaged: block 5 "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_the_workflow_ends_with_the_sentence_and_keeps_the_result(
    name: str,
    earlier: tuple[Path, dict[str, Any]],
    run_workflow: Workflow,
    make_model: ModelMaker,
    tmp_path: Path,
) -> None:
    change, message = CHANGES[name]
    folder, changed = tmp_path / "run", copy.deepcopy(earlier[1])
    shutil.copytree(earlier[0], folder)
    change(changed, folder, make_model)
    before = files_in(folder / "results" / "tiny" / "tiny.ome.zarr")
    # Twice: a failure that the next run forgets would leave the old result as if it were the new.
    for target in ("all", "all", "verify"):
        ended = run_workflow(changed, folder, target)
        assert ended.returncode == 1
        said = ended.stdout + ended.stderr
        assert re.search(message, said), said
        assert "Traceback" not in said, said
        assert files_in(folder / "results" / "tiny" / "tiny.ome.zarr") == before


@pytest.mark.slow
def test_a_disk_that_fills_up_under_the_workflow(
    earlier: tuple[Path, dict[str, Any]], run_workflow: Workflow, tmp_path: Path
) -> None:
    folder, results = tmp_path / "run", tmp_path / "run" / "results"
    results.mkdir(parents=True)
    with small_disk(results):
        filler = fill(results, leave=650_000)  # which the image and its histogram take most of
        ended = run_workflow(earlier[1], folder)
        assert ended.returncode == 1
        said = ended.stdout + ended.stderr
        assert "rule predict:" in said
        assert re.search(f"RunError: {FULL}", said), said
        assert "Traceback" not in said, said
        filler.unlink()
        ended = run_workflow(earlier[1], folder)
        assert ended.returncode == 0, ended.stderr
        expected = files_in(earlier[0] / "results" / "tiny" / "tiny.ome.zarr")
        assert files_in(results / "tiny" / "tiny.ome.zarr") == expected
