"""The section `train` of a configuration, checked and frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from unet.config import apply_schema, make_spec, resolve_path
from unet.errors import ConfigError, UserError
from unet.model.architecture import Architecture
from unet.model.folder import find_model
from unet.planning.axes import Sizes
from unet.sources import local_files
from unet.sources.base import SourceSpec
from unet.storage.location import Location, locate

Range = tuple[int, int]
Part = dict[str, Range]
T = TypeVar("T")

SCHEMA = Path(__file__).resolve().with_name("train.schema.yaml")
WEIGHT_FILES = (".pt", ".safetensors")


@dataclass(frozen=True)
class LabelledImage:
    """One labelled image of the configuration.

    annotated        mask of what is labelled; None for everywhere
    values           of class masks, the label value of each class; None for instance labels
    train, validate  ranges by axis, {} for all of it, None for nothing
    """

    image: SourceSpec
    label: SourceSpec
    annotated: SourceSpec | None
    values: tuple[int, ...] | None
    fill_holes: bool
    set: str
    share: float
    zoom: tuple[float, float]
    train: Part | None
    validate: Part | None

    @cached_property
    def place(self) -> Location:
        """Where the image is, links followed: two that are one file have one place."""
        place = locate(self.image.path)
        return place.resolve() if isinstance(place, Path) else place

    @property
    def paths(self) -> list[str]:
        """Every path that is read for it."""
        return [s.path for s in (self.image, self.label, self.annotated) if s is not None]


@dataclass(frozen=True)
class Network:
    """The numbers of the U-Net that do not follow from the images."""

    width: int
    depth: int
    dims: int
    kernel: Any
    pool: Any
    dropout: float


@dataclass(frozen=True)
class Border:
    """w0 and sigma of the border weights; sigma in pixels."""

    weight: float
    sigma: float


@dataclass(frozen=True)
class Augment:
    """How windows are varied; see the schema for each."""

    on_object: float
    turn: bool
    elastic: float
    elastic_grid: int
    gain: float
    gamma: float
    offset: float
    blur: float
    noise: float
    saturation: float
    stain: float


@dataclass(frozen=True)
class Training:
    """One training; the keys are those of `train.schema.yaml`."""

    name: str
    description: str
    licence: str
    data: tuple[str, ...]
    classes: tuple[str, ...]
    objects: str
    channels: tuple[str, ...] | None
    pixel_size: float | None
    normalisation: dict[str, Any]
    images: tuple[LabelledImage, ...]
    network: Network
    start: str | None
    seed: int
    steps: int
    window: Sizes
    batch: int
    learning_rate: float
    average: float
    class_weights: tuple[float, ...]
    border: Border
    augment: Augment
    measures: tuple[str, ...]
    report: int
    precision: str
    device: str

    def architecture(self, in_channels: int) -> Architecture:
        """The network for images of so many channels."""
        n = self.network
        return Architecture.of(
            in_channels, len(self.classes), n.width, n.depth, n.dims, n.kernel, n.pool
        )

    @property
    def start_files(self) -> list[Path]:
        """The file of weights to start from, and model.yaml if it is in a model folder."""
        if self.start is None:
            return []
        if Path(self.start).suffix in WEIGHT_FILES:
            return [Path(self.start)]
        model = find_model(self.start)
        return [model.weights, model.folder / "model.yaml"]

    @property
    def paths(self) -> list[str]:
        """Every path of an image, a label or a mask, in order."""
        return [path for image in self.images for path in image.paths]

    def decisive(self) -> dict[str, Any]:
        """All that the trained weights depend on, but the pixels."""
        idle = {"description", "licence", "data", "channels", "pixel_size"}
        idle |= {"measures", "device", "images"}
        return {key: value for key, value in asdict(self).items() if key not in idle}


def read_training(raw: Mapping[str, Any], rule_outputs: Collection[str] = ()) -> Training:
    """Check the section `train` and freeze it; no image is opened.

    rule_outputs  paths that need not exist yet, since a rule makes them

    Raises ConfigError that names the key.
    """
    try:
        filled = apply_schema(raw, SCHEMA)
        images = tuple(map(_image, filled["images"]))
        training = _frozen(filled, images)
        _check(training)
        for path in training.paths:
            if path not in rule_outputs:
                local_files(path)
    except UserError as error:
        raise ConfigError(f"train: {error}") from error
    return training


def _frozen(filled: Mapping[str, Any], images: tuple[LabelledImage, ...]) -> Training:
    classes = tuple(filled["classes"])
    special = {
        "classes": classes,
        "images": images,
        "start": None if filled["start"] is None else resolve_path(filled["start"]),
        "objects": filled["objects"] or classes[1],
        "network": _part(Network, filled["network"]),
        "border": _part(Border, filled["border"]),
        "augment": _part(Augment, filled["augment"]),
        "class_weights": tuple(filled["class_weights"] or [1.0] * len(classes)),
    }
    others = {
        key: tuple(value) if isinstance(value, list) else value for key, value in filled.items()
    }
    return Training(**{**others, **special})


def _part(kind: type[T], section: Mapping[str, Any]) -> T:
    return kind(**{field.name: section[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _image(item: Mapping[str, Any]) -> LabelledImage:
    channels, annotated = item["channels"], item["annotated"]
    train = item["train"] if item["train"] is not None else item["validate"] is None
    return LabelledImage(
        image=make_spec(
            item["image"],
            axes=item["axes"],
            level=item["level"],
            channels=None if channels is None else tuple(channels),
        ),
        label=make_spec(item["label"], axes=item["label_axes"]),
        annotated=None if annotated is None else make_spec(annotated, axes=item["label_axes"]),
        values=None if item["values"] is None else tuple(item["values"]),
        fill_holes=item["fill_holes"],
        set=item["set"],
        share=item["share"],
        zoom=(item["zoom"][0], item["zoom"][1]),
        train=_ranges(train),
        validate=_ranges(item["validate"]),
    )


def _ranges(said: bool | Mapping[str, list[int]] | None) -> Part | None:
    if said is None or said is False:
        return None
    if said is True:
        return {}
    return {axis: (first, last) for axis, (first, last) in said.items()}


def _check(training: Training) -> None:
    """What the schema cannot say. Raises ConfigError, or ModelError of a wrong network."""
    for index, image in enumerate(training.images):
        for problem in _problems(training, image):
            raise ConfigError(f"images[{index}] ({image.image.path}): {problem}")
    if not any(image.train is not None for image in training.images):
        raise ConfigError("images: expected one to train on at least, but all only validate.")
    if training.objects not in training.classes:
        raise ConfigError(
            f"objects: expected one of the classes {', '.join(training.classes)}, got "
            f"{training.objects!r}."
        )
    if len(training.class_weights) != len(training.classes):
        raise ConfigError(
            f"class_weights: expected {len(training.classes)}, one for each class, got "
            f"{len(training.class_weights)}."
        )
    if training.augment.saturation and training.normalisation["method"] == "zscore":
        raise ConfigError(
            "augment.saturation: expected 0 with the normalisation zscore, which has no value for "
            "white. Normalise by percentile or range, or leave saturation out."
        )
    if len(training.window) != training.network.dims:
        raise ConfigError(
            f"window: expected {training.network.dims} numbers, as the network has dims, got "
            f"{list(training.window)}."
        )
    training.architecture(1).output(training.window)
    for file in training.start_files:
        if not file.is_file():
            raise ConfigError(f"start: expected the weights to start from in {file}, found none.")


def _problems(training: Training, image: LabelledImage) -> Iterator[str]:
    count = len(training.classes)
    if image.values is None and count > 3:
        yield (
            f"expected class masks (`values`) for {count} classes: from instance labels come two "
            f"(background, inside) or three (background, inside, border)."
        )
    if image.values is not None and len(image.values) != count:
        yield f"expected {count} `values`, one for each class, got {len(image.values)}."
    if image.zoom[0] > image.zoom[1]:
        yield f"expected `zoom` as smallest and largest, got {list(image.zoom)}."
    for part in (image.train, image.validate):
        for axis, (first, last) in (part or {}).items():
            if last <= first:
                yield f"expected a range of {axis} with pixels in it, got {[first, last]}."
    for other in training.images:
        if image.train is None or other.validate is None or other.place != image.place:
            continue
        if not _apart(image.train, other.validate):
            yield (
                "expected `train` and `validate` to have no pixel in common. Give both a range on "
                "the same axis, one after the other, such as train: {z: [0, 24]}, validate: {z: "
                "[24, 30]}."
            )


def _apart(train: Part, validate: Part) -> bool:
    """Whether two parts are disjoint: on some axis one ends before the other begins."""
    for axis in train.keys() & validate.keys():
        (_, end), (start, _) = sorted((train[axis], validate[axis]))
        if end <= start:
            return True
    return False
