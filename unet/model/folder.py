"""A model on disk: a folder with `model.yaml` and its weights, and nothing that executes.

    unet/shipped_models/fluo-nuclei/
        model.yaml             the network, its input, its training data, its licence
        weights.safetensors    its weights, whose sha256 is in model.yaml

A plain PyTorch state dict (`weights.pt`) may stand in for the safetensors file; it is read with
`weights_only=True`, so it cannot run code either. Everything is checked before any image is read.
"""

from __future__ import annotations

import errno
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unet.errors import ModelError, excerpt
from unet.model.architecture import Architecture
from unet.model.normalisation import Normalisation
from unet.schema import find_errors, read_schema
from unet.yaml_file import read_yaml

SHIPPED = Path(__file__).resolve().parent.parent / "shipped_models"
SCHEMA = Path(__file__).resolve().with_name("model.schema.yaml")
COLOURS = ("red", "green", "blue")
MOST_PROBLEMS = 5
LARGEST_VALUE = 8  # bytes of one weight
SLACK_BYTES = 1 << 24  # of a file, for the names and shapes of its tensors


@dataclass(frozen=True)
class ModelSpec:
    """A model's description, read and checked, without its weights.

    classes      names of the network's output channels; the first is the background
    channels     names of the image channels it expects
    pixel_size   micrometres per pixel, in y and x, of the images it was trained on; None if it
                 does not matter
    fingerprint  sha256 over the weights, the network and the normalisation: two models with the
                 same fingerprint predict the same
    """

    folder: Path
    name: str
    architecture: Architecture
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    normalisation: Normalisation
    pixel_size: float | None
    weights: Path
    weights_sha256: str

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything but pixels and device that a prediction depends on."""
        parts = (self.weights_sha256, self.architecture, self.normalisation)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def refuse_channels(self, names: tuple[str, ...], path: str) -> None:
        """Raise ModelError if an image does not have as many channels as the network."""
        count = self.architecture.in_channels
        if len(names) == count:
            return
        raise ModelError(
            f"Expected an image with {count} channels ({', '.join(self.channels)}) for the model "
            f"{self.name}, got {len(names)} ({', '.join(names)}) in {path}. "
            f"{self._advice_on_channels(names)}"
        )

    def _advice_on_channels(self, names: tuple[str, ...]) -> str:
        count = self.architecture.in_channels
        if len(names) < count:
            return "Choose another model: channels that are not in the image cannot be made up."
        chosen = self.channels if set(self.channels) <= set(names) else names[:count]
        advice = f"Choose them with `channels`, for example `channels: [{', '.join(chosen)}]`."
        if count == 1 and set(COLOURS) <= set(names):
            advice += (
                f" Of a stained section, such as H&E, one colour is not enough: choose a model for "
                f"{', '.join(COLOURS)} instead, such as {' or '.join(_shipped_for(COLOURS))}."
            )
        return advice

    def refuse_plane(self, zyx: tuple[int, ...], path: str) -> None:
        """Raise ModelError if a 3D network is for an image of one plane."""
        if self.architecture.dims == 3 and zyx[0] == 1:
            raise ModelError(
                f"Expected a stack for the 3D model {self.name}, got a single plane of shape "
                f"{zyx[1:]} in {path}. Choose a 2D model, or name the axes with `axes`."
            )


def _shipped_for(channels: tuple[str, ...]) -> list[str]:
    """The names of the shipped models that take these channels."""
    folders = sorted(path for path in SHIPPED.iterdir() if (path / "model.yaml").is_file())
    return [f.name for f in folders if tuple(_read_description(f).get("channels", ())) == channels]


def find_model(name_or_path: str | Path) -> ModelSpec:
    """Read the description of a shipped model (a name) or of any folder (a path).

    Checks the weights' sha256, so that a damaged file is found before an image is opened.
    Raises ModelError.
    """
    folder = _folder(name_or_path)
    description = _read_description(folder)
    weights = folder / description["weights"]["file"]
    if weights.parent != folder or not weights.is_file():
        raise ModelError(
            f"Expected the weights at {weights}, as model.yaml says, and found no file there. "
            f"Copy the file into the model's folder, or correct `weights: file`."
        )
    architecture = _architecture(folder, description)
    refuse_size(weights, architecture)
    sha256 = file_sha256(weights)
    expected = description["weights"].get("sha256")
    if expected is not None and expected != sha256:
        raise ModelError(
            f"Expected {weights} to have the sha256 {expected}, got {sha256}: the file is damaged "
            f"or is another version. Copy it again, or write the new sha256 into model.yaml."
        )
    return ModelSpec(
        folder=folder,
        name=description["name"],
        architecture=architecture,
        classes=tuple(description["classes"]),
        channels=tuple(description.get("channels") or map(str, range(architecture.in_channels))),
        normalisation=_normalisation(folder, description["normalisation"]),
        pixel_size=description.get("pixel_size"),
        weights=weights,
        weights_sha256=sha256,
    )


def _architecture(folder: Path, description: dict[str, Any]) -> Architecture:
    network = Architecture.of(classes=len(description["classes"]), **description["network"])
    channels = description.get("channels")
    if channels and len(channels) != network.in_channels:
        raise ModelError(
            f"Expected {network.in_channels} names in `channels` of {folder}/model.yaml, one "
            f"for each of the network's in_channels, got {len(channels)}. Correct one of the two."
        )
    return network


def _normalisation(folder: Path, said: dict[str, Any]) -> Normalisation:
    normalisation = Normalisation(**said)
    if not 0 < normalisation.high - normalisation.low < math.inf:
        raise ModelError(
            f"Expected the normalisation of {folder}/model.yaml to have a `low` below its `high`, "
            f"got {normalisation.low} and {normalisation.high}. Correct one of the two."
        )
    return normalisation


def refuse_size(weights: Path, network: Architecture) -> None:
    """Raise ModelError for a file that cannot hold the weights of a network of this size.

    Why so early: before the two are compared tensor by tensor, the file is read from end to end
    and the network is built, and either may be larger than the memory.
    """
    size, parameters = weights.stat().st_size, network.parameters
    if not parameters - SLACK_BYTES <= size <= parameters * LARGEST_VALUE + SLACK_BYTES:
        raise ModelError(
            f"Expected in {weights} the {parameters:.3g} numbers of the network that is described, "
            f"which take 1 to {LARGEST_VALUE} bytes each, got a file of {size:,} bytes. It belongs "
            f"to another model, or `network` is not what was trained: correct the width and depth."
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    is_name = isinstance(name_or_path, str) and path.name == name_or_path
    try:
        folder = SHIPPED / path if is_name and (SHIPPED / path).is_dir() else path
        is_there = (folder / "model.yaml").is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_there = False
    if not is_there:
        shipped = ", ".join(sorted(p.name for p in SHIPPED.glob("*/") if p.is_dir())) or "none"
        raise ModelError(
            f"Expected a model's name or the path of a folder with a model.yaml, got "
            f"{excerpt(repr(str(name_or_path)))}. The models that come with the workflow: "
            f"{shipped}."
        )
    return folder.resolve()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.yaml"
    try:
        description = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"Expected YAML in {path}, but {error}.") from error
    errors = find_errors(description, read_schema(SCHEMA))[:MOST_PROBLEMS]
    if errors:
        problems = [f"{e.json_path.removeprefix('$.') or 'file'}: {e.message}" for e in errors]
        told = "; ".join(map(excerpt, problems))
        raise ModelError(f"Expected {path} to describe a model, but {told}.")
    return dict(description)
