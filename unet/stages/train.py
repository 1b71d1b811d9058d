"""train: from labelled images to a model folder that predict can use.

    models/<name>/
        model.yaml           what the model is, what it was trained and measured on, its scores
        weights.safetensors
        curves.csv, curves.svg    loss and scores, by step and by minute
        validation.png       validation images: image, mask, errors
    models/<name>.training/  the checkpoint of a training that has not ended

The checkpoint is named by a fingerprint of the settings and of the pixels to train on. So with
another setting a training starts from the beginning, and with the same ones it resumes.
"""

from __future__ import annotations

import csv
import io
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.multiprocessing.spawn import start_processes

from unet.errors import DeviceError, RunError, UserError
from unet.evaluation import picture
from unet.evaluation.metrics import ScoreCounter
from unet.fingerprint import fingerprint
from unet.model.classify import decide
from unet.model.folder import file_sha256
from unet.network.devices import choose_devices
from unet.network.unet import UNet
from unet.network.weights import description_text, save_model
from unet.storage.ownership import write_whole
from unet.training import checkpoint
from unet.training.config import Training
from unet.training.labelled import (
    LabelledData,
    LabelledImage,
    normalisation_settings,
    read_all,
    training_identity,
)
from unet.training.sampling import Sampler
from unet.training.targets import make_targets
from unet.training.trained_model import (
    TrainedModel,
    delete_work,
    publish_model,
    refuse_model_of_others,
    replace_file,
    work_folder,
)
from unet.training.trainer import (
    Trainer,
    TrainingProcess,
    initial_state,
    predict_foreground,
    process_bytes,
    process_group,
)
from unet.yaml_file import read_yaml

log = logging.getLogger(__name__)

THRESHOLD = 0.5
DIGITS = 4
PAGE_ROWS = 6
GIGABYTE = 1e9
STATED = ("description", "channels", "pixel_size", "licence", "data")


@dataclass(frozen=True)
class Prediction:
    """A validation part, and its mask as the network predicts it.

    mask   (Z, Y, X) uint8, classes
    truth  (Z, Y, X) uint8, the classes that its labels stand for
    """

    part: LabelledImage
    mask: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def choose_gpus(training: Training, gpus: int) -> int:
    """How many GPUs to train on.

    gpus  of the job's `resources: gpu`; 0 if it has none: then all of this machine, at most one
          for each window of the batch

    Raises DeviceError where a GPU would have no window, or is not there.
    """
    if gpus > training.batch:
        raise DeviceError(
            f"Expected at least one window for each GPU, got a batch of {training.batch} for "
            f"{gpus} GPUs. Raise `batch`, or use fewer with --set-resources train:gpu=1."
        )
    return min(training.batch, len(choose_devices(training.device, gpus)))


def run(training: Training, folder: Path, threads: int, gpus: int) -> str:
    """Train, and have the model in its folder. Returns the fingerprint of the training.

    gpus  how many to train on; 0 for the CPU

    A training that has ended, with these settings and pixels, takes no step. The model before stays
    until the new one is whole.

    Raises SourceError for labelled images that cannot be used, StoreError where somebody else's
    files lie in the model's folder, RunError where the loss is not finite.
    """
    refuse_model_of_others(folder)
    data = read_all(training)
    trained = _trained(training, data, folder)
    before = TrainedModel.of(folder)
    if before and replace(before, files={}) == trained and before.is_whole(folder):
        log.info("train %s: nothing to do, its settings and images are as they were", trained.name)
        _describe_again(training, data, before, folder)
        delete_work(folder)
        return trained.training
    checkpoint_file = work_folder(folder) / _checkpoint_name(trained)
    _log_start(training, data, gpus)
    devices = [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
    if len(devices) == 1:
        _train(TrainingProcess(0, 1, devices[0]), training, data, checkpoint_file, threads)
    else:
        train_in_parallel(devices, training, checkpoint_file)
    state = initial_state(training, len(data.channels), "cpu")
    checkpoint.load(checkpoint_file, state)
    publish_model(folder, trained, partial(_write, training, data, state))
    delete_work(folder)
    return trained.training


def _trained(training: Training, data: LabelledData, folder: Path) -> TrainedModel:
    """What this training will have left, without its files.

    One that started from the very model that it has replaced since is recognised by what it started
    from then.
    """
    starts = tuple(map(file_sha256, training.start_files))
    before = TrainedModel.of(folder)
    candidates = [starts]
    if before and training.starts_from(folder):
        candidates = [before.starts, starts]
    names = [fingerprint(training_identity(training, data, each)) for each in candidates]
    known = before.training if before else None
    index = 0 if names[0] == known else -1
    return TrainedModel(folder.name, names[index], candidates[index], {})


def _checkpoint_name(trained: TrainedModel) -> str:
    """Of another release of torch, whose sums may round otherwise, it is another."""
    return f"checkpoint-{fingerprint(trained.training, version('torch'))}.safetensors"


def _describe_again(
    training: Training, data: LabelledData, trained: TrainedModel, folder: Path
) -> None:
    """Have in model.yaml what changes no weights, as the configuration says it now."""
    said, stated = read_yaml(folder / "model.yaml"), _stated(training, data)
    kept = {key: value for key, value in said.items() if key in stated or key not in STATED}
    if kept | stated != said:
        replace_file(folder, trained, "model.yaml", description_text(kept | stated))
        log.info("train %s: model.yaml says what the configuration says now", training.name)


def _log_start(training: Training, data: LabelledData, gpus: int) -> None:
    """Log what the training reads, and how much memory it needs."""
    pixels = sum(part.labels.size for part in data.training_parts) / 1e6
    log.info(
        "train %s: %d images (%.1f megapixels) to train on, %d to measure on, %d steps of %d",
        training.name,
        len(data.training_parts),
        pixels,
        len(data.validation_parts),
        training.steps,
        training.batch,
    )
    log.info(
        "%s, about %.1f GB of memory for each process, and the images",
        f"{gpus} GPUs" if gpus else "on the CPU",
        process_bytes(training, len(data.channels)) / GIGABYTE,
    )


def _train(
    process: TrainingProcess,
    training: Training,
    data: LabelledData,
    checkpoint_file: Path,
    threads: int,
) -> None:
    """Train in this process, from the checkpoint if there is one."""
    if process.device == "cpu":
        torch.set_num_threads(threads)
    state = initial_state(training, len(data.channels), process.device)
    if checkpoint_file.exists():
        checkpoint.load(checkpoint_file, state)
        log.info("resuming after step %d", state.step)
    measure = partial(_curve_scores, training, data, process.device)
    Trainer(training, state, Sampler(training, data), measure, checkpoint_file, process).run()


def train_in_parallel(devices: list[str], training: Training, checkpoint_file: Path) -> None:
    """Train in one process per device; each reads the images itself, and uses one thread."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (devices, training, checkpoint_file, Path(folder))
        context = start_processes(  # type: ignore[no-untyped-call]
            _train_in_process, arguments, nprocs=len(devices), join=False, start_method="spawn"
        )
        try:
            while not context.join():
                pass
        except Exception as error:
            for message_file in Path(folder).glob("error-*"):
                raise RunError(message_file.read_text(encoding="utf-8")) from error
            raise


def _train_in_process(
    rank: int, devices: list[str], training: Training, checkpoint_file: Path, folder: Path
) -> None:
    process = TrainingProcess(rank, len(devices), devices[rank])
    try:
        with process_group(process, folder / "rendezvous"):
            _train(process, training, read_all(training), checkpoint_file, threads=1)
    except UserError as error:
        (folder / f"error-{rank}").write_text(str(error), encoding="utf-8")
        raise


def _predict(training: Training, part: LabelledImage, network: UNet, device: str) -> Prediction:
    mask = decide(predict_foreground(network, part.pixels, device)[None], THRESHOLD)[0, 0]
    return Prediction(part, mask, make_targets(part, training).classes)


def _scores_by_set(
    training: Training, measures: tuple[str, ...], predictions: list[Prediction]
) -> dict[str, dict[str, float]]:
    """Scores of the validation images, by the `set` of the configuration that they belong to."""
    counters: dict[str, ScoreCounter] = {}
    for prediction in predictions:
        part, volumes = prediction.part, training.network.dims == 3
        empty = ScoreCounter(measures, len(training.classes), volumes)
        objects = part.labels if part.config.values is None else None
        truth = prediction.truth if objects is None else (objects > 0).astype(np.uint8)
        counter = counters.setdefault(part.config.set, empty)
        counter.add(prediction.mask, truth, objects, part.annotated)
    return {name: counter.scores() for name, counter in counters.items()}


def _curve_scores(
    training: Training, data: LabelledData, device: str, network: UNet
) -> dict[str, float]:
    """The scores in a row of the learning curves: Dice and pixel error of every set."""
    predictions = [_predict(training, part, network, device) for part in data.validation_parts]
    scores_by_set = _scores_by_set(training, (), predictions)
    return {
        f"{measure}:{name}": scores[measure]
        for measure in ("dice", "pixel_error")
        for name, scores in scores_by_set.items()
    }


def _write(training: Training, data: LabelledData, state: checkpoint.State, folder: Path) -> None:
    """Write the model folder of a training that has ended."""
    predictions = [_predict(training, part, state.mean, "cpu") for part in data.validation_parts]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(state.curves[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(state.curves)
    write_whole(folder / "curves.csv", table.getvalue().encode())
    title = f"{training.name}: {training.steps} steps"
    write_whole(folder / "curves.svg", picture.draw_curves(state.curves, title).encode())
    if predictions:
        rows = [row for prediction in predictions for row in _rows(prediction)]
        indices = np.linspace(0, len(rows) - 1, min(PAGE_ROWS, len(rows))).round().astype(int)
        write_whole(folder / "validation.png", picture.encode_page([rows[i]() for i in indices]))
    scores_by_set = {
        name: {measure: round(value, DIGITS) for measure, value in scores.items()}
        for name, scores in _scores_by_set(training, training.measures, predictions).items()
    }
    description = _description(training, data, state) | {"metrics": scores_by_set}
    save_model(folder, state.mean, description)
    for name, scores in scores_by_set.items():
        log.info("%s: %s", name, ", ".join(f"{measure} {v}" for measure, v in scores.items()))


def _rows(prediction: Prediction) -> list[Callable[[], picture.Picture]]:
    """For each plane, a function that draws it."""
    pixels, mask, truth = prediction.part.pixels, prediction.mask, prediction.truth
    return [
        partial(picture.draw_comparison, pixels[:, z], mask[z] > 0, truth[z] > 0)
        for z in range(len(mask))
    ]


def _description(training: Training, data: LabelledData, state: checkpoint.State) -> dict[str, Any]:
    """The keys of model.yaml that are known after training."""
    stated = dict.fromkeys(STATED) | _stated(training, data)
    description: dict[str, Any] = {
        "name": training.name,
        "description": stated.pop("description"),
        "classes": list(training.classes),
        "channels": stated.pop("channels"),
        "normalisation": normalisation_settings(training),
        **stated,
        "source": (
            f"snakemake train: {state.step} steps with a batch of {training.batch}, windows of "
            f"{' x '.join(map(str, training.window))} pixels, {state.seconds / 60:.0f} minutes, "
            f"seed {training.seed}"
        ),
        "settings": _as_lists(training.settings()),
        "trained_on": data.trained_on,
        "not_seen": data.not_seen,
    }
    return {key: value for key, value in description.items() if value not in (None, "", [])}


def _stated(training: Training, data: LabelledData) -> dict[str, Any]:
    """Of model.yaml, what the configuration says and no weight depends on."""
    values = (
        *(training.description, list(data.channels), training.pixel_size),
        *(training.licence, list(training.data)),
    )
    pairs = zip(STATED, values, strict=True)
    return {key: value for key, value in pairs if value not in (None, "", [])}


def _as_lists(value: Any) -> Any:
    """Tuples become lists, since YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
