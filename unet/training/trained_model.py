"""What a training left: so that it is not done again, and nothing of others makes way for it.

    models/<name>/.trained.json      in the model's folder: what was trained, and each of its files
    models/<name>.training/          checkpoints, and the folder that is being written
    models/.receipts/<name>          the receipt, which Snakemake may delete
    models/.receipts/<name>.json     the record, see `unet.storage.repairs`

A model takes its place by renaming its folder, when it is whole. Until then the one before stays,
also where the training started from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from unet.errors import StoreError
from unet.storage.digest import digest
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.ownership import (
    delete_files,
    delete_replaced,
    link_file,
    publish,
    refuse_files_of_others,
    write_whole,
)

RECORD = ".trained.json"  # the last one of a folder to be deleted


@dataclass(frozen=True)
class TrainedModel:
    """The manifest of a training that has ended.

    name      of the model
    training  the fingerprint of all that its weights depend on
    starts    the sha256 of each file of weights that it started from
    files     the digest of each file in the model's folder, by its name
    """

    name: str
    training: str
    starts: tuple[str, ...]
    files: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> TrainedModel | None:
        """That of a model's folder; None where no training left one, or it does not read."""
        try:
            return read_manifest(folder / RECORD, cls)
        except StoreError:
            return None

    def is_whole(self, folder: Path) -> bool:
        """Whether every file is as the training left it."""
        return all(self.owns(folder, file) for file in self.files)

    def owns(self, folder: Path, file: str) -> bool:
        """Whether a file of the folder, given by its name, is as the training left it."""
        if file == RECORD:
            return True
        path = folder / file
        return path.is_file() and digest(path.read_bytes()).hex() == self.files.get(file)


def model_folder(name: str) -> Path:
    """Where the training of this name leaves its model."""
    return Path("models", name)


def record_file(name: str) -> Path:
    """Where it is recorded that a model was left; see `unet.storage.repairs`."""
    return Path("models", ".receipts", f"{name}.json")


def refuse_model_of_others(folder: Path) -> None:
    """Raise StoreError if what lies at a model's place is not, file by file, of its training."""
    refuse_files_of_others(folder, _ownership(folder))


def work_folder(folder: Path) -> Path:
    """Where a training keeps its checkpoint, and writes the model."""
    return folder.with_name(f"{folder.name}.training")


def publish_model(folder: Path, trained: TrainedModel, write: Callable[[Path], None]) -> None:
    """Have a model written by `write` into a new folder, and put that in its place."""
    built = work_folder(folder) / folder.name
    delete_files(built, "*")  # of a run that was killed while it wrote them
    write(built)
    files = {file.name: digest(file.read_bytes()).hex() for file in sorted(built.iterdir())}
    files.pop(RECORD, None)
    write_manifest(built / RECORD, replace(trained, files=files))
    publish(built, folder, _ownership(folder))


def delete_work(folder: Path) -> None:
    """Delete what is of no use once a model is in its place."""
    delete_replaced(folder, _ownership(folder))
    delete_files(work_folder(folder) / folder.name, "*")
    delete_files(work_folder(folder), "checkpoint-*.safetensors")


def replace_file(folder: Path, trained: TrainedModel, name: str, content: bytes) -> None:
    """Have another content in one file of a model; all its others stay."""

    def write(built: Path) -> None:
        for file in trained.files:
            if file != name:
                link_file(folder / file, built / file)
        write_whole(built / name, content)

    publish_model(folder, trained, write)


def _ownership(folder: Path) -> Callable[[Path, str], bool]:
    """A function that says whether a file is of the training that left its folder."""
    left_in = cache(TrainedModel.of)

    def owns(place: Path, file: str) -> bool:
        trained = left_in(place)
        return trained is not None and trained.name == folder.name and trained.owns(place, file)

    return owns
