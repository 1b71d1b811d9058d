"""The rules train and evaluate: the real snakemake, and masks against labels."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from conftest import picture
from support import run_stages

import unet
from unet.errors import ConfigError, SourceError
from unet.evaluation.metrics import PixelCounts
from unet.evaluation.picture import FALSE_NEGATIVE
from unet.planning.geometry import Box
from unet.sources.base import SourceSpec
from unet.sources.image import Image
from unet.stages.evaluate import Evaluation, run
from unet.storage.workspace import Workspace


def table(file: Path) -> dict[tuple[str, str], float]:
    with file.open(newline="") as lines:
        return {
            (row["image"], row["measure"]): float(row["value"]) for row in csv.DictReader(lines)
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def config(folder, make_model):
    image = picture(90, 110)
    tifffile.imwrite(folder / "image.tif", image)
    tifffile.imwrite(folder / "labels.tif", (image > 100).astype(np.uint8))
    labelled = {"image": "image.tif", "label": "labels.tif"}
    return {
        "images": [{"name": "one", "path": "image.tif", "model": str(make_model().folder)}],
        "evaluate": [{"name": "one", "label": "labels.tif", "measures": ["pixels", "instances"]}],
        "train": {
            "name": "tiny",
            "classes": ["background", "disc"],
            "images": [{**labelled, "train": {"y": [0, 50]}, "validate": {"y": [50, 90]}}],
            "network": {"width": 2, "depth": 1},
            "window": [24, 24],
            "steps": 4,
            "report": 2,
        },
    }


@pytest.mark.slow
def test_a_model_is_trained_and_a_mask_is_measured_by_rules(run_workflow, config, folder):
    done = run_workflow(config, folder, "evaluate", "train")
    assert done.returncode == 0, done.stdout + done.stderr
    mask = zarr.open_array(folder / "results/one/one.ome.zarr/labels/mask/0", mode="r")[...] > 0
    wanted = PixelCounts.of(mask, tifffile.imread(folder / "labels.tif") > 0).scores()
    figures = table(folder / "results/evaluation.csv")
    for measure, value in wanted.items():
        assert figures["one", measure] == pytest.approx(value, abs=1e-6)
    assert ("one", "ap_50") in figures
    assert imagecodecs.imread(folder / "results/evaluation.png").shape == (90 + 6, 3 * 110 + 12, 3)
    model = unet.load_model(folder / "models" / "tiny")
    assert unet.predict(model, tifffile.imread(folder / "image.tif")).shape == (2, 90, 110)
    again = run_workflow(config, folder, "evaluate", "train")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["evaluate", "train"])
def test_without_its_section_a_rule_says_what_is_missing(run_workflow, config, tmp_path, rule):
    tifffile.imwrite(tmp_path / "image.tif", picture(20, 20))
    done = run_workflow({"images": config["images"]}, tmp_path, rule, "--dry-run")
    assert done.returncode != 0
    assert f"no section `{rule}`" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(make_model, tmp_path_factory):
    """A stack of three planes, segmented plane by plane."""
    workspace = Workspace(tmp_path_factory.mktemp("run") / "stack")
    workspace.root.mkdir()
    np.save(workspace.root / "stack.npy", picture(3, 60, 70))
    run_stages(SourceSpec(str(workspace.root / "stack.npy"), axes="zyx"), make_model(), workspace)
    return workspace


def asked(workspace: Workspace, label: np.ndarray, **changed) -> Evaluation:
    np.save(workspace.root / "label.npy", label)
    return Evaluation(
        **{
            "workspace": workspace,
            "image": SourceSpec(str(workspace.root / "stack.npy"), axes="zyx"),
            "label": SourceSpec(str(workspace.root / "label.npy"), axes="zyx"),
            "annotated": None,
            "values": None,
            "measures": ("pixels", "instances", "membranes"),
            **changed,
        }
    )


def found(workspace: Workspace) -> np.ndarray:
    return zarr.open_array(workspace.result / "labels/mask/0", mode="r")[...]


def test_a_mask_is_perfect_against_itself(finished, tmp_path):
    mask = found(finished)
    assert 0 < mask.mean() < 1
    run([asked(finished, mask, values=(0, 1))], tmp_path / "t.csv", tmp_path / "p.png")
    figures = table(tmp_path / "t.csv")
    assert figures.pop(("stack", "pixel_error")) == 0
    assert set(figures.values()) == {1}
    run([asked(finished, 1 - mask, values=(1, 0))], tmp_path / "t.csv", tmp_path / "p.png")
    assert table(tmp_path / "t.csv")["stack", "dice"] == 1


def test_only_what_is_annotated_is_measured(finished, tmp_path):
    mask = found(finished)
    wrong = mask.copy()
    wrong[:, :30] = 1 - wrong[:, :30]
    annotated = np.ones_like(mask)
    annotated[:, :30] = 0
    np.save(finished.root / "annotated.npy", annotated)
    spec = SourceSpec(str(finished.root / "annotated.npy"), axes="zyx")
    evaluation = asked(finished, wrong, annotated=spec, values=(0, 1), measures=("pixels",))
    run([evaluation], tmp_path / "t.csv", tmp_path / "p.png")
    assert table(tmp_path / "t.csv")["stack", "dice"] == 1


def test_a_label_that_is_no_class_is_refused(finished, tmp_path):
    mask = found(finished)
    for values, strange in (((0, 1), "255"), ((0, 255), "7")):
        label = mask * np.uint8(255)
        label[2, 59, 69] = int(strange)
        with pytest.raises(SourceError, match=rf"also holds \[{strange}\]"):
            run([asked(finished, label, values=values)], tmp_path / "t.csv", tmp_path / "p.png")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("number", [-1, 0.3, np.nan])
def test_labels_below_zero_and_fractions_are_refused(finished, tmp_path, number):
    """As a training refuses them: they would be counted as objects."""
    label = found(finished).astype(np.float32)
    label[2, 59, 69] = number
    with pytest.raises(SourceError, match=r"Expected whole numbers from 0 to .* as labels"):
        run([asked(finished, label)], tmp_path / "t.csv", tmp_path / "p.png")
    assert not (tmp_path / "t.csv").exists()


def test_labels_that_say_nothing_are_told(finished, tmp_path, caplog):
    mask = found(finished)
    for label, measures, said in (
        (mask * 0, ("pixels",), "all labels in .* are 0: nothing is labelled there"),
        (mask * np.uint8(255), ("instances",), r"are 255, in \d+ places: as instances .* one obj"),
        (mask * np.uint8(255), ("pixels",), None),
    ):
        caplog.clear()
        run([asked(finished, label, measures=measures)], tmp_path / "t.csv", tmp_path / "p.png")
        warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert len(warnings) == (said is not None)
        assert said is None or re.search(said, warnings[0])


def test_pixels_are_counted_box_by_box_and_a_part_is_drawn(finished, tmp_path, monkeypatch):
    """The figures are those of whole planes, and no read is larger than a box."""
    rng = np.random.default_rng(0)
    label = np.zeros((3, 60, 70), np.uint8)
    label[:, 40:, 50:] = rng.random((3, 20, 20)) < 0.5
    evaluation = asked(finished, label, measures=("pixels",))
    run([evaluation], tmp_path / "whole.csv", tmp_path / "whole.png")
    read: list[int] = []

    def watched(image: Image, box: Box) -> np.ndarray:
        read.append(int(np.prod(box.shape)))
        return untouched(image, box)

    untouched = Image.read
    monkeypatch.setattr(Image, "read", watched)
    monkeypatch.setattr("unet.stages.evaluate.BOX_PIXELS", 256)
    monkeypatch.setattr("unet.evaluation.picture.LARGEST_SIDE", 16)
    run([evaluation], tmp_path / "boxes.csv", tmp_path / "part.png")
    assert max(read) <= 256
    assert table(tmp_path / "boxes.csv") == table(tmp_path / "whole.csv")
    drawn = imagecodecs.imread(tmp_path / "part.png")
    assert drawn.shape == (3 * (16 + 6), 3 * 16 + 12, 3)
    errors = drawn[:, 2 * (16 + 6) :]
    labelled = (errors == FALSE_NEGATIVE).all(axis=-1) | (errors == 200).all(axis=-1)
    assert labelled.sum() == label[:, 44:, 54:].sum()


def test_labels_of_another_size_are_refused(finished, tmp_path):
    with pytest.raises(SourceError, match="the size of the mask"):
        run([asked(finished, np.zeros((3, 60, 71), int))], tmp_path / "t.csv", tmp_path / "p.png")
    assert not (tmp_path / "t.csv").exists()


def test_a_name_that_is_no_image_is_refused(config, folder, monkeypatch):
    from test_config import SCHEMA, read_config

    monkeypatch.chdir(folder)
    raw = {**config, "evaluate": [{"name": "two", "label": "labels.tif"}]}
    with pytest.raises(ConfigError, match=r"one of the images \(one\), got 'two'"):
        read_config(raw, SCHEMA)
