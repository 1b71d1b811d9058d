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

Range = tuple[int, int]  # first pixel, and the one after the last
Ranges = dict[str, Range]  # by axis; an axis without one is whole
T = TypeVar("T")

SCHEMA = Path(__file__).resolve().with_name("train.schema.yaml")
WEIGHT_FILES = (".pt", ".safetensors")


@dataclass(frozen=True)
class LabelledImageConfig:
    """One labelled image of the configuration.

    annotated        mask of where the labels are complete; None for everywhere
    values           for class masks, the label value of each class; None for instance labels
    train, validate  the part to train on, the part to measure on; None for nothing
    """

    image: SourceSpec
    label: SourceSpec
    annotated: SourceSpec | None
    values: tuple[int, ...] | None
    fill_holes: bool
    set: str
    share: float
    zoom: tuple[float, float]
    train: Ranges | None
    validate: Ranges | None

    @cached_property
    def location(self) -> Location:
        """Where the image is, with links resolved: equal for two names of one file."""
        location = locate(self.image.path)
        return location.resolve() if isinstance(location, Path) else location

    @property
    def paths(self) -> list[str]:
        """Every path that is read for it."""
        specs = (self.image, self.label, self.annotated)
        return [spec.path for spec in specs if spec is not None]


@dataclass(frozen=True)
class NetworkOptions:
    """The numbers of the U-Net that do not follow from the images."""

    width: int
    depth: int
    dims: int
    kernel: Any
    pool: Any
    dropout: float


@dataclass(frozen=True)
class BorderOptions:
    """w0 and sigma of the border weights; sigma in pixels."""

    weight: float
    sigma: float


@dataclass(frozen=True)
class AugmentOptions:
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
    images: tuple[LabelledImageConfig, ...]
    network: NetworkOptions
    start: str | None
    seed: int
    steps: int
    window: Sizes
    batch: int
    learning_rate: float
    average: float
    class_weights: tuple[float, ...]
    border: BorderOptions
    augment: AugmentOptions
    measures: tuple[str, ...]
    report: int
    precision: str
    device: str

    def architecture(self, in_channels: int) -> Architecture:
        """The network for images with this number of channels."""
        options = self.network
        return Architecture.of(
            in_channels,
            len(self.classes),
            options.width,
            options.depth,
            options.dims,
            options.kernel,
            options.pool,
        )

    @property
    def start_files(self) -> list[Path]:
        """The weights to start from, and model.yaml if they are in a model folder."""
        if self.start is None:
            return []
        if Path(self.start).suffix in WEIGHT_FILES:
            return [Path(self.start)]
        model = find_model(self.start)
        return [model.weights, model.folder / "model.yaml"]

    def starts_from(self, folder: Path) -> bool:
        """Whether it starts from the weights in this folder."""
        return any(file.parent.resolve() == folder.resolve() for file in self.start_files)

    @property
    def paths(self) -> list[str]:
        """Every path of an image, a label or a mask, in order."""
        return [path for image in self.images for path in image.paths]

    def settings(self) -> dict[str, Any]:
        """Everything but the pixels that the trained weights depend on."""
        without_effect = {"description", "licence", "data", "channels", "pixel_size"}
        without_effect |= {"measures", "device", "images"}
        return {key: value for key, value in asdict(self).items() if key not in without_effect}


def read_training(raw: Mapping[str, Any], rule_outputs: Collection[str] = ()) -> Training:
    """Check the section `train` and freeze it; no image is opened.

    rule_outputs  paths that need not exist yet, since a rule makes them

    Raises ConfigError that names the key.
    """
    try:
        section = apply_schema(raw, SCHEMA)
        images = tuple(map(_image, section["images"]))
        training = _training(section, images)
        _check(training)
        for path in training.paths:
            if path not in rule_outputs:
                local_files(path)
    except UserError as error:
        raise ConfigError(f"train: {error}") from error
    return training


def _training(section: Mapping[str, Any], images: tuple[LabelledImageConfig, ...]) -> Training:
    classes = tuple(section["classes"])
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in section.items()
    }
    values |= {
        "classes": classes,
        "images": images,
        "start": None if section["start"] is None else resolve_path(section["start"]),
        "objects": section["objects"] or classes[1],
        "network": _options(NetworkOptions, section["network"]),
        "border": _options(BorderOptions, section["border"]),
        "augment": _options(AugmentOptions, section["augment"]),
        "class_weights": tuple(section["class_weights"] or [1.0] * len(classes)),
    }
    return Training(**values)


def _options(kind: type[T], section: Mapping[str, Any]) -> T:
    return kind(**{field.name: section[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _image(item: Mapping[str, Any]) -> LabelledImageConfig:
    channels, annotated = item["channels"], item["annotated"]
    train = item["train"] if item["train"] is not None else item["validate"] is None
    return LabelledImageConfig(
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


def _ranges(part: bool | Mapping[str, list[int]] | None) -> Ranges | None:
    if part is None or part is False:
        return None
    if part is True:
        return {}
    return {axis: (start, stop) for axis, (start, stop) in part.items()}


def _check(training: Training) -> None:
    """Check what a schema cannot. Raises ConfigError, or ModelError for a wrong network."""
    for index, image in enumerate(training.images):
        for problem in _problems(training, image):
            raise ConfigError(f"images[{index}] ({image.image.path}): {problem}")
    if not any(image.train is not None for image in training.images):
        raise ConfigError(
            "images: expected at least one image to train on, but all are for validation only. "
            "Set `train` of an image, or leave out its `validate`."
        )
    if training.objects not in training.classes:
        raise ConfigError(
            f"objects: expected one of the classes {', '.join(training.classes)}, got "
            f"{training.objects!r}. Correct the name."
        )
    if len(training.class_weights) != len(training.classes):
        raise ConfigError(
            f"class_weights: expected {len(training.classes)}, one for each class, got "
            f"{len(training.class_weights)}. Correct one of the two lists."
        )
    if training.augment.saturation and training.normalisation["method"] == "zscore":
        raise ConfigError(
            "augment.saturation: expected 0 with the normalisation zscore, which has no value that "
            "stands for white. Normalise by percentile or range, or leave saturation out."
        )
    if len(training.window) != training.network.dims:
        raise ConfigError(
            f"window: expected {training.network.dims} numbers, one for each of the `dims` of the "
            f"network, got {list(training.window)}."
        )
    training.architecture(1).output(training.window)
    for file in training.start_files:
        if not file.is_file():
            raise ConfigError(
                f"start: expected the weights to start from in {file}, but there is no such file. "
                f"Correct the path."
            )


def _problems(training: Training, image: LabelledImageConfig) -> Iterator[str]:
    count = len(training.classes)
    if image.values is None and count > 3:
        yield (
            f"expected class masks (with `values`) for {count} classes. Instance labels give only "
            f"two (background, inside) or three (background, inside, border)."
        )
    if image.values is not None and len(image.values) != count:
        yield f"expected {count} `values`, one for each class, got {len(image.values)}."
    if image.zoom[0] > image.zoom[1]:
        yield f"expected `zoom` as smallest and largest, got {list(image.zoom)}."
    for part in (image.train, image.validate):
        for axis, (start, stop) in (part or {}).items():
            if stop <= start:
                yield (
                    f"expected a range of {axis} as the first pixel and the one after the last, "
                    f"got {[start, stop]}, which holds no pixel."
                )
    for other in training.images:
        if image.train is None or other.validate is None or other.location != image.location:
            continue
        if not _are_disjoint(image.train, other.validate):
            yield (
                "expected `train` and `validate` to have no pixel in common. Give both a range on "
                "the same axis, one after the other, such as train: {z: [0, 24]}, validate: {z: "
                "[24, 30]}."
            )


def _are_disjoint(train: Ranges, validate: Ranges) -> bool:
    """Whether two parts share no pixel: on some axis one ends before the other begins."""
    for axis in train.keys() & validate.keys():
        (_, end), (start, _) = sorted((train[axis], validate[axis]))
        if end <= start:
            return True
    return False
