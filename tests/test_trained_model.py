"""A model that was trained stays until the next one is whole; nothing is trained twice."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from conftest import files_in, picture

from unet.errors import SourceError, StoreError
from unet.model.folder import find_model
from unet.stages import train
from unet.training import trained_model
from unet.training.config import Training, read_training
from unet.training.trained_model import RECORD, TrainedModel, refuse_model_of_others, work_folder

MADE_LATER = 10**12  # nanoseconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = picture(90, 110)
    tifffile.imwrite(tmp_path / "image.tif", image)
    tifffile.imwrite(tmp_path / "labels.tif", (image > 100).astype(np.uint8))
    return tmp_path


def training_of(folder: Path, **changed: Any) -> Training:
    labelled = {"image": str(folder / "image.tif"), "label": str(folder / "labels.tif")}
    return read_training(
        {
            "name": "tiny",
            "classes": ["background", "disc"],
            "images": [{**labelled, "train": {"y": [0, 50]}, "validate": {"y": [50, 90]}}],
            "network": {"width": 2, "depth": 1},
            "window": [24, 24],
            "steps": 2,
            "report": 1,
            **changed,
        }
    )


def run(folder: Path, **changed: Any) -> Path:
    """Train into `models/tiny` of a folder."""
    model = folder / "models" / "tiny"
    train.run(training_of(folder, **changed), model, threads=1, gpus=0)
    return model


def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a step of training is an error."""

    def step(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr("unet.training.trainer.Trainer.run", step)


def test_a_model_is_whole_and_its_work_is_gone(folder: Path) -> None:
    model = run(folder)
    trained = TrainedModel.of(model)
    assert trained is not None
    assert trained.files.keys() | {RECORD} == files_in(model).keys()
    assert trained.is_whole(model)
    assert files_in(folder / "models").keys() == {f"tiny/{name}" for name in files_in(model)}
    assert find_model(model).name == "tiny"


@pytest.mark.parametrize("failure", ["at its start", "at its end", "killed"])
@pytest.mark.parametrize("start", [None, "in its place"])
def test_a_training_that_fails_leaves_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: str, start: str | None
) -> None:
    """Also one that starts from the model in whose place its own will be."""
    model = run(folder)
    before = files_in(model)
    changed = {"seed": 5, "start": str(model) if start else None}
    with monkeypatch.context() as patch:
        if failure == "at its start":
            (folder / "image.tif").rename(folder / "away.tif")
            (folder / "image.tif").write_bytes(b"no image")
            with pytest.raises(SourceError):
                run(folder, **changed)
            (folder / "away.tif").replace(folder / "image.tif")
        else:
            error = OSError("full") if failure == "at its end" else KeyboardInterrupt()

            def fail(*_: object) -> None:
                raise error

            patch.setattr("unet.storage.ownership.sync_folder", fail)
            with pytest.raises(type(error)):
                run(folder, **changed)
    assert files_in(model) == before
    run(folder, **changed)
    after = files_in(model)
    assert after != before
    run(folder, **changed)
    assert files_in(model) == after


def test_a_training_that_is_as_it_was_takes_no_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the times of its files, and in other words."""
    model = run(folder)
    before = files_in(model)
    for file in (folder / "image.tif", folder / "labels.tif", model / "weights.safetensors"):
        later = time.time_ns() + MADE_LATER
        os.utime(file, ns=(later, later))
    no_step(monkeypatch)
    run(folder)
    assert files_in(model) == before
    run(folder, description="Discs, in other words.")
    said = yaml.safe_load((model / "model.yaml").read_text(encoding="utf-8"))
    assert said["description"] == "Discs, in other words."
    changed = {name for name, content in files_in(model).items() if content != before[name]}
    assert changed == {"model.yaml", RECORD}
    with pytest.raises(AssertionError, match="a step was taken"):
        run(folder, seed=9)


@pytest.mark.parametrize("file", ["weights.safetensors", "model.yaml", "curves.csv", RECORD])
@pytest.mark.parametrize("damage", ["emptied", "gone"])
def test_a_damaged_model_is_made_again_or_named(folder: Path, file: str, damage: str) -> None:
    model = run(folder)
    before = files_in(model)
    if damage == "emptied":
        os.truncate(model / file, 0)
    else:
        (model / file).unlink()
    if damage == "gone" and file != RECORD:
        run(folder)
        assert (model / "weights.safetensors").read_bytes() == before["weights.safetensors"]
        assert files_in(model).keys() == before.keys()
    else:  # a file of another content may be somebody else's
        with pytest.raises(StoreError, match=r"to hold only what this workflow wrote"):
            run(folder)


@pytest.mark.parametrize("added", ["notes.txt", "model.yaml", "other model"])
def test_files_of_others_in_the_place_of_a_model_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, added: str
) -> None:
    """Told before a step."""
    model = folder / "models" / "tiny"
    if added == "other model":
        run(folder)
        model.rename(folder / "models" / "another")
        shutil.copytree(folder / "models" / "another", model)
        (model / "notes.txt").write_text("mine")
    else:
        model.mkdir(parents=True)
        (model / added).write_text("name: mine")
    before = files_in(model)
    no_step(monkeypatch)
    with pytest.raises(StoreError, match=r"to hold only what this workflow wrote"):
        run(folder, seed=3)
    assert files_in(model) == before
    refuse_model_of_others(folder / "models" / "nothing")


def test_what_others_put_beside_a_checkpoint_stays(folder: Path) -> None:
    work = work_folder(folder / "models" / "tiny")
    work.mkdir(parents=True)
    (work / "notes.txt").write_text("mine")
    run(folder)
    assert files_in(work) == {"notes.txt": b"mine"}


def test_a_model_in_its_place_is_that_of_its_name(folder: Path) -> None:
    """A copy under another name is not known as made by the training of that name."""
    model = run(folder)
    copy = model.with_name("copy")
    shutil.copytree(model, copy)
    with pytest.raises(StoreError, match=r"to hold only what this workflow wrote"):
        trained_model.refuse_model_of_others(copy)
