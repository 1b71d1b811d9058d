"""train: from labelled images to a model folder that predict takes as it is.

    models/<name>/
        model.yaml           what the model is, what it saw and did not see, how good it is
        weights.safetensors
        curves.csv, curves.svg    loss and figures against steps and minutes
        validation.png       images that it never saw: image, mask, errors
        work/                the checkpoint of a training that has not ended

The checkpoint is named by a fingerprint of the settings and of the pixels that are trained on: with
others a training begins anew, and with the same it goes on where it was.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
import tempfile
from collections.abc import Callable
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
from unet.network.devices import choose_devices
from unet.network.unet import UNet
from unet.network.weights import save_model
from unet.storage.manifest import write_whole
from unet.training import checkpoint
from unet.training.config import Training
from unet.training.labelled import Labelled, Split, identity, normalised_by, read_all
from unet.training.sampling import Sampler
from unet.training.targets import target
from unet.training.trainer import Team, Trainer, fresh, joined, memory_needed, probabilities

log = logging.getLogger(__name__)

THRESHOLD = 0.5
DIGITS = 4
PAGE_ROWS = 6
GIGABYTE = 1e9


def choose_gpus(training: Training, asked: int) -> int:
    """How many GPUs to train on: as many as were asked for, else one a window where there are some.

    asked  by `resources: gpu` of the job; 0 if it did not ask

    Raises DeviceError where a GPU would have no window, or is not there.
    """
    if asked > training.batch:
        raise DeviceError(
            f"Expected at least one window for each GPU, got a batch of {training.batch} for "
            f"{asked} GPUs. Raise `batch`, or use fewer with --set-resources train:gpu=1."
        )
    return min(training.batch, len(choose_devices(training.device, asked)))


def run(training: Training, folder: Path, threads: int, gpus: int) -> None:
    """Train, and write the model folder. `gpus` is how many to train on; 0 for the CPU.

    Raises SourceError for labelled images that cannot be used, RunError where the loss is not
    finite.
    """
    split = read_all(training)
    place = folder / "work" / f"checkpoint-{_named(training, split)}.safetensors"
    _tell(training, split, gpus)
    devices = [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
    if len(devices) == 1:
        _train(Team(0, 1, devices[0]), training, split, place, threads)
    else:
        train_together(devices, training, place)
    state = fresh(training, len(split.channels), "cpu")
    checkpoint.load(place, state)
    _write(training, split, state, folder)
    shutil.rmtree(place.parent)


def _named(training: Training, split: Split) -> str:
    return fingerprint(identity(training, split), version("torch"))


def _tell(training: Training, split: Split, gpus: int) -> None:
    """What the training reads, and what it will take."""
    pixels = sum(part.labels.size for part in split.seen) / 1e6
    log.info(
        "train %s: %d images (%.1f megapixels) to train on, %d to measure on, %d steps of %d",
        training.name,
        len(split.seen),
        pixels,
        len(split.kept),
        training.steps,
        training.batch,
    )
    log.info(
        "%s, about %.1f GB of memory for each beside the images",
        f"{gpus} GPUs" if gpus else "on the CPU",
        memory_needed(training, len(split.channels)) / GIGABYTE,
    )


def _train(team: Team, training: Training, split: Split, place: Path, threads: int) -> None:
    """Train in this process, from the checkpoint where there is one."""
    if team.device == "cpu":
        torch.set_num_threads(threads)
    state = fresh(training, len(split.channels), team.device)
    if place.exists():
        checkpoint.load(place, state)
        log.info("going on after step %d", state.step)
    measure = partial(_quick_figures, training, split, team.device)
    Trainer(training, state, Sampler(training, split), measure, place, team).run()


def train_together(devices: list[str], training: Training, place: Path) -> None:
    """Train in one process a device; each reads the images for itself, and uses one thread."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (devices, training, place, Path(folder))
        context = start_processes(  # type: ignore[no-untyped-call]
            _member, arguments, nprocs=len(devices), join=False, start_method="spawn"
        )
        try:
            while not context.join():
                pass
        except Exception as error:
            for said in Path(folder).glob("error-*"):
                raise RunError(said.read_text(encoding="utf-8")) from error
            raise


def _member(rank: int, devices: list[str], training: Training, place: Path, folder: Path) -> None:
    team = Team(rank, len(devices), devices[rank])
    try:
        with joined(team, folder / "meeting"):
            _train(team, training, read_all(training), place, threads=1)
    except UserError as error:
        (folder / f"error-{rank}").write_text(str(error), encoding="utf-8")
        raise


Found = tuple[Labelled, NDArray[np.uint8], NDArray[np.uint8]]


def _found(training: Training, part: Labelled, network: UNet, device: str) -> Found:
    """A part, its mask as the network finds it, and the classes that were wanted (Z, Y, X)."""
    found = decide(probabilities(network, part.pixels, device)[None], THRESHOLD)[0, 0]
    return part, found, target(part, training).classes


def _tallied(
    training: Training, kinds: tuple[str, ...], found: list[Found]
) -> dict[str, dict[str, float]]:
    """Figures of the validation images, by the set that they belong to."""
    tallies: dict[str, ScoreCounter] = {}
    for part, mask, wanted in found:
        volumes = training.network.dims == 3
        empty = ScoreCounter(kinds, len(training.classes), volumes)
        objects = part.labels if part.said.values is None else None
        truth = wanted if objects is None else (objects > 0).astype(np.uint8)
        tallies.setdefault(part.said.set, empty).add(mask, truth, objects, part.annotated)
    return {name: tally.scores() for name, tally in tallies.items()}


def _quick_figures(
    training: Training, split: Split, device: str, network: UNet
) -> dict[str, float]:
    """What a row of the learning curves says of every set: Dice and pixel error."""
    found = [_found(training, part, network, device) for part in split.kept]
    figures = _tallied(training, (), found)
    return {
        f"{measure}:{name}": of_set[measure]
        for measure in ("dice", "pixel_error")
        for name, of_set in figures.items()
    }


def _write(training: Training, split: Split, state: checkpoint.State, folder: Path) -> None:
    """The model folder, from a training that has ended."""
    found = [_found(training, part, state.mean, "cpu") for part in split.kept]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(state.curves[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(state.curves)
    write_whole(folder / "curves.csv", table.getvalue().encode())
    title = f"{training.name}: {training.steps} steps"
    write_whole(folder / "curves.svg", picture.draw_curves(state.curves, title).encode())
    if found:
        rows = [row for part in found for row in _rows(*part)]
        chosen = np.linspace(0, len(rows) - 1, min(PAGE_ROWS, len(rows))).round().astype(int)
        write_whole(folder / "validation.png", picture.encode_page([rows[i]() for i in chosen]))
    figures = {
        name: {measure: round(value, DIGITS) for measure, value in of_set.items()}
        for name, of_set in _tallied(training, training.measures, found).items()
    }
    save_model(folder, state.mean, _described(training, split, state) | {"metrics": figures})
    for name, of_set in figures.items():
        log.info("%s: %s", name, ", ".join(f"{m} {v}" for m, v in of_set.items()))


def _rows(
    part: Labelled, found: NDArray[np.uint8], wanted: NDArray[np.uint8]
) -> list[Callable[[], picture.Picture]]:
    """What draws each plane of a validation image."""
    return [
        partial(picture.draw_comparison, part.pixels[:, z], found[z] > 0, wanted[z] > 0)
        for z in range(len(found))
    ]


def _described(training: Training, split: Split, state: checkpoint.State) -> dict[str, Any]:
    """The keys of model.yaml that are known after training."""
    described: dict[str, Any] = {
        "name": training.name,
        "description": training.description,
        "classes": list(training.classes),
        "channels": list(split.channels),
        "normalisation": normalised_by(training),
        "pixel_size": training.pixel_size,
        "licence": training.licence,
        "source": (
            f"snakemake train: {state.step} steps with a batch of {training.batch}, windows of "
            f"{' x '.join(map(str, training.window))} pixels, {state.seconds / 60:.0f} minutes, "
            f"seed {training.seed}"
        ),
        "settings": _plain(training.decisive()),
        "data": list(training.data),
        "trained_on": split.trained_on,
        "not_seen": split.not_seen,
    }
    return {key: value for key, value in described.items() if value not in (None, "", [])}


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
