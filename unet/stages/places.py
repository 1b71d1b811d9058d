"""Where a run reads and where it writes: told before the first job if the two meet.

Why: what lies at a destination may make way for a result. A destination is what the run of one
image or one training may replace, and no more: with `stores: data` the image `a` is written to
`data/a`, so that `data/raw.tif` may lie beside it. Links and `..` are followed, as the disk does.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unet.config import Config
from unet.errors import ConfigError
from unet.sources import ZARR_METADATA, local_files
from unet.stages.dependencies import read_model
from unet.storage.location import Location, RemotePath, locate
from unet.storage.workspace import Workspace
from unet.training.config import Training
from unet.training.trained_model import model_folder, record_file, work_folder

Parts = tuple[str, ...]  # of a path without links, or of a URL


@dataclass(frozen=True)
class Input:
    """A file that a run reads, or a folder that it reads as one thing.

    said  how a message names it
    """

    parts: Parts
    said: str


@dataclass(frozen=True)
class Destination:
    """A file or folder that a run may replace.

    said    how a message names it
    key     of the configuration, which decides where it lies
    owner   the image or the training that is written there
    """

    parts: Parts
    said: str
    key: str
    owner: str


def refuse_clashes(
    config: Config, training: Training | None, rule_outputs: Collection[str] = ()
) -> None:
    """Raise ConfigError if an input and a destination meet, or two destinations do.

    rule_outputs  paths that need not exist yet, since a rule makes them
    """
    destinations = list(_destinations(config, training))
    clash = find_clash(_inputs(config, training, rule_outputs), destinations)
    if clash:
        read, written = clash
        raise ConfigError(
            f"{written.key}: expected the run to write where it reads nothing, but "
            f"{_relation(read, written)}. The run may replace what lies there. Choose another "
            f"{_advice(written)}, or move what is read."
        )
    meeting = find_meeting(destinations)
    if meeting:
        one, other = meeting
        raise ConfigError(
            f"{one.key}: expected a folder of its own for each, but {_relation(one, other)}. "
            f"Choose another {_advice(one)}, or correct the link that leads there."
        )


def find_clash(
    inputs: Iterable[Input], destinations: Sequence[Destination]
) -> tuple[Input, Destination] | None:
    """The first input that is, lies in or holds a destination, and that destination."""
    written = {destination.parts: destination for destination in destinations}
    held = {folder: each for each in destinations for folder in _folders(each.parts)}
    for read in inputs:
        places = [written[folder] for folder in _folders(read.parts) if folder in written]
        places += [where[read.parts] for where in (written, held) if read.parts in where]
        if places:
            return read, places[0]
    return None


def find_meeting(destinations: Sequence[Destination]) -> tuple[Destination, Destination] | None:
    """The first two destinations of different owners that are one place, or one in the other."""
    written: dict[Parts, Destination] = {}
    for each in destinations:
        other = written.setdefault(each.parts, each)
        if other.owner != each.owner:
            return each, other
    for each in destinations:
        for folder in _folders(each.parts):
            if folder in written and written[folder].owner != each.owner:
                return each, written[folder]
    return None


def _folders(parts: Parts) -> Iterator[Parts]:
    """The folders that a place lies in, from the root."""
    return (parts[:count] for count in range(1, len(parts)))


def _relation(one: Input | Destination, other: Destination) -> str:
    if one.parts == other.parts:
        return f"{one.said} and {other.said} are one place"
    inner, outer = (one, other) if len(one.parts) > len(other.parts) else (other, one)
    return f"{inner.said} lies in the place of {outer.said}"


def _advice(destination: Destination) -> str:
    name = f"name for {destination.owner}"
    return f"folder for `stores`, or another {name}" if destination.key == "stores" else name


def _destinations(config: Config, training: Training | None) -> Iterator[Destination]:
    for name in config.images:
        owner, root = f"the image {name}", Path("results", name)
        homes: dict[str, Location] = {"images": root}
        if config.stores:
            homes["stores"] = Workspace(root, config.stores).home
        for key, home in homes.items():
            yield _destination(home, "the results", key, owner)
            work = home / "work"
            if isinstance(work, Path) and work.is_symlink():  # such as to another disk
                yield _destination(work, "the work", key, owner)
        for folder in ("logs", "benchmarks"):
            yield _destination(Path(folder, name), f"the {folder}", "images", owner)
    if training:
        owner = f"the training {training.name}"
        model = model_folder(training.name)
        yield _destination(model, "the model", "train", owner)
        yield _destination(work_folder(model), "the work", "train", owner)
        yield _destination(record_file(training.name), "the record", "train", owner)


def _destination(place: Location, what: str, key: str, owner: str) -> Destination:
    parts = _resolve(place)
    return Destination(parts, f"{what} of {owner} ({_say(str(place), parts)})", key, owner)


def _inputs(
    config: Config, training: Training | None, rule_outputs: Collection[str]
) -> Iterator[Input]:
    for said, path in _images(config, training):
        for place in _image_places(path, rule_outputs):
            yield _input(place, said)
            if isinstance(place, Path) and place.is_symlink():  # which would be lost itself
                link = Path(os.path.realpath(place.parent), place.name)
                yield Input(link.parts, f"{said} ({place})")
    trained = _resolve(model_folder(training.name)) if training else ()
    for said, place in _models(config, training):
        if _resolve(place) != trained:  # to train a model further, in its place, is no clash
            yield _input(place, said)


def _input(place: Location, said: str) -> Input:
    parts = _resolve(place)
    return Input(parts, f"{said} ({_say(str(place), parts)})")


def _images(config: Config, training: Training | None) -> Iterator[tuple[str, str]]:
    """What messages call them, and the paths of all images, labels and masks."""
    for name, image in config.images.items():
        yield f"the image {name}", image.source.path
    for item in config.evaluate:
        for spec in (item.label, item.annotated):
            if spec is not None:
                yield f"the labels of the image {item.name}", spec.path
    for path in training.paths if training else ():
        yield "an image or labels of the training", path


def _image_places(path: str, rule_outputs: Collection[str]) -> list[Location]:
    """Of an image of files each of them; a Zarr image as one folder."""
    location = locate(path)
    if path in rule_outputs or isinstance(location, RemotePath):
        return [location]
    files = list(map(Path, local_files(path)))
    return [_zarr_root(location)] if files[0].name in ZARR_METADATA else [*files]


def _zarr_root(path: Path) -> Path:
    """The whole image that an array or a group belongs to: `raw.ome.zarr` of `raw.ome.zarr/0`."""
    folders = [path, *path.parents]
    return next((each for each in folders if each.suffix == ".zarr" and _is_apart(each)), path)


def _models(config: Config, training: Training | None) -> Iterator[tuple[str, Location]]:
    for name in dict.fromkeys(image.model for image in config.images.values()):
        model = read_model(name)
        files = [model.folder / "model.yaml", model.weights]
        for place in [model.folder] if _is_apart(model.folder) else files:
            yield f"the model {name}", place
    for file in training.start_files if training else ():
        folder = file.parent
        is_of_model = (folder / "model.yaml").is_file() and _is_apart(folder)
        yield "the weights that the training starts from", folder if is_of_model else file


def _is_apart(folder: Path) -> bool:
    """Whether a folder does not hold the project: if it did, all results would lie in it."""
    return not Path.cwd().is_relative_to(os.path.realpath(folder))


def _resolve(place: Location) -> Parts:
    if isinstance(place, RemotePath):
        return (place.root, *filter(None, place.key.split("/")))
    return Path(os.path.realpath(place)).parts


def _say(text: str, parts: Parts) -> str:
    """A path as it was written, and where that is if a link leads elsewhere."""
    if "://" in text or Path(os.path.normpath(Path.cwd() / text)).parts == parts:
        return text
    return f"{text}, which is {Path(*parts)}"
