"""What the rules of the workflow depend on: files, and signatures of files.

Why signatures: to Snakemake an input has changed if it is newer than what was made of it. But an
older file may replace another, and a job with an input whose time lies in the future is refused. So
a rule declares as its inputs only what other rules make. What images and models look like, or hold,
is a parameter of it.

Nothing here opens an image or asks a server, so that a dry run is quick and needs no network.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from unet.config import Config
from unet.fingerprint import fingerprint
from unet.model.folder import ModelSpec, file_sha256, find_model
from unet.sources import file_signature
from unet.storage.repairs import read_repairs
from unet.storage.result_record import looks_whole
from unet.storage.workspace import Workspace
from unet.training.config import Training
from unet.training.trained_model import TrainedModel, model_folder, record_file

SIGNED_FILES = 10_000  # of an image, at most. Of each, so that one more image changes no other


def image_signature(path: str, rule_outputs: Collection[str] = ()) -> str:
    """A text that changes when a file of the image changes.

    rule_outputs  paths of which it is empty: a rule makes them, so they need not be there yet
    """
    return "" if path in rule_outputs else _signature(path)


@cache
def _signature(path: str) -> str:
    return file_signature(path, SIGNED_FILES)


@cache
def read_model(name_or_path: str) -> ModelSpec:
    """A model, read once for all its images: all its bytes are."""
    return find_model(name_or_path)


def model_signature(name_or_path: str) -> str:
    """A text that changes when a model predicts otherwise, or is described otherwise."""
    model = read_model(name_or_path)
    said = (model.name, model.classes, model.channels, model.pixel_size)
    return fingerprint(model.fingerprint, *said)


def label_paths(config: Config) -> list[str]:
    """The labels and the masks of what is annotated, of all images to evaluate."""
    specs = [spec for item in config.evaluate for spec in (item.label, item.annotated)]
    return [spec.path for spec in specs if spec is not None]


def evaluations(config: Config) -> list[dict[str, Any]]:
    """The parameters of `scripts/evaluate.py`: each set of labels, with the source of its image."""
    return [
        {**asdict(item), "source": asdict(config.images[item.name].source)}
        for item in config.evaluate
    ]


@cache
def result_repairs(root: Path, stores: str | None, slabs: tuple[str, ...]) -> int:
    """How often stitch had to mend a result: once more than before, if it has to now.

    Snakemake alone would not see that a result is gone, replaced or damaged, nor an earlier
    manifest: it does not make again what only a finished job needed. After a stage that failed with
    new settings, it would take the old result for the new one.

    Asked once in a process, before the first job: an earlier manifest is made again until stitch
    asks.

    root, stores  of the image's workspace
    slabs         manifests of `predict`
    """
    workspace = Workspace(root, stores)
    earlier = [workspace.manifest("ingest"), workspace.manifest("split"), *map(Path, slabs)]

    def is_as_it_was(run: str) -> bool:
        result = workspace.result
        return all(path.exists() for path in earlier) and (
            not isinstance(result, Path)
            or looks_whole(workspace.records, run, result, SIGNED_FILES)
        )

    return read_repairs(workspace.repairs, is_as_it_was)


def start_signatures(training: Training) -> list[str]:
    """What the weights hold that a training starts from; nothing where it goes on in their place.

    There the weights change by the training itself.
    """
    if training.starts_from(model_folder(training.name)):
        return []
    return [file_sha256(file) for file in training.start_files]


def training_repairs(name: str) -> int:
    """How often a model had to be made again: once more than before, if it has to be now."""
    folder = model_folder(name)

    def is_as_it_was(training: str) -> bool:
        trained = TrainedModel.of(folder)
        return trained is not None and trained.training == training and trained.is_whole(folder)

    return read_repairs(record_file(name), is_as_it_was)
