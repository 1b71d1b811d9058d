"""The configuration, read once: checked against its schema, and frozen.

Why not leave it to the rules: a typo must be an error that names the key before anything runs, and
a rule that reads a dictionary can only fail late. Nothing here opens an image or asks a server.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from unet.errors import ConfigError, UserError
from unet.model.folder import find_model
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources import local_files
from unet.sources.base import SourceSpec
from unet.storage.location import locate

GIGABYTE = 10**9

# YAML can say .nan and .inf, which compare with no limit.
JSON_TYPES = Draft202012Validator.TYPE_CHECKER
Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=JSON_TYPES.redefine(
        "number", lambda _, value: JSON_TYPES.is_type(value, "number") and math.isfinite(value)
    ),
)


@dataclass(frozen=True)
class ImageConfig:
    """One input image: its name, where it is, and the model that it is for."""

    name: str
    source: SourceSpec
    model: str


@dataclass(frozen=True)
class EvaluateConfig:
    """Labels of one image; see `unet.stages.evaluate`."""

    name: str
    label: SourceSpec
    annotated: SourceSpec | None
    values: tuple[int, ...] | None
    measures: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """The whole configuration; the stages' settings hold for every image.

    verify  the blocks and the seed of `unet.stages.verify.VerifyOptions`
    """

    images: dict[str, ImageConfig]
    stores: str | None
    split: SplitOptions
    device: str
    scheduler: str | None
    stitch: StitchOptions
    block_seconds: float | None
    verify: dict[str, int]
    evaluate: tuple[EvaluateConfig, ...] = ()


def read_config(raw: Mapping[str, Any], schema_file: Path, made: Collection[str] = ()) -> Config:
    """Check a configuration and freeze it.

    raw   as YAML gives it, keys of `workflow/schemas/config.schema.yaml`
    made  paths that need not be there yet, since a rule makes them

    Raises ConfigError that names the key.
    """
    complete = checked(raw, schema_file)
    images = _images(complete["images"], made)
    minutes = complete["predict"]["block_minutes"]
    split, predict, stitch = complete["split"], complete["predict"], complete["stitch"]
    return Config(
        images=images,
        stores=_stores(complete["stores"]),
        split=SplitOptions(
            memory=int(split["memory"] * GIGABYTE),
            precision=predict["precision"],
            shard=_sizes(split["shard"]),
            chunk=_sizes(split["chunk"]),
            core=_sizes(split["core"]),
            tolerance=predict["tolerance"],
        ),
        device=predict["device"],
        scheduler=predict["scheduler"],
        stitch=StitchOptions(stitch["threshold"], stitch["image"]),
        block_seconds=None if minutes is None else 60.0 * minutes,
        verify=complete["verify"],
        evaluate=tuple(_evaluate(item, images, made) for item in complete["evaluate"]),
    )


def _images(items: Sequence[Mapping[str, Any]], made: Collection[str]) -> dict[str, ImageConfig]:
    """The images by their names, once all that they name is found to be there."""
    _check_names(items)
    images: dict[str, ImageConfig] = {}
    models: set[str] = set()
    for index, item in enumerate(items):
        try:
            image = _image(item)
            if image.source.path not in made:
                local_files(image.source.path)
            if image.model not in models:  # many images, few models
                find_model(image.model)
                models.add(image.model)
        except UserError as error:
            raise ConfigError(f"images[{index}] ({item['name']}): {error}") from error
        images[image.name] = image
    return images


def checked(raw: Mapping[str, Any], schema_file: Path) -> dict[str, Any]:
    """A configuration with the defaults of its schema. Raises ConfigError that names the key."""
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    errors = sorted(Validator(schema).iter_errors(raw), key=lambda e: e.json_path)
    if errors:
        raise ConfigError("; ".join(_sentence(error) for error in errors[:5]))
    return dict(_with_defaults(raw, schema))


def _image(item: Mapping[str, Any]) -> ImageConfig:
    channels = item["channels"]
    return ImageConfig(
        name=item["name"],
        model=plain(item["model"]),
        source=spec_of(
            item["path"],
            axes=item["axes"],
            level=item["level"],
            level_pixel_size=item["level_pixel_size"],
            channels=None if channels is None else tuple(channels),
            pixel_size=item["pixel_size"],
        ),
    )


def _stores(text: str | None) -> str | None:
    try:
        stores = plain(text) if text else None
    except UserError as error:
        raise ConfigError(f"stores: {error}") from error
    if stores and stores.startswith("http"):
        raise ConfigError(
            f"stores: expected a local folder or s3://bucket/path, got {stores}: a web server is "
            f"read only. If it is an S3 server, name it by AWS_ENDPOINT_URL."
        )
    return stores


def spec_of(path: str, **options: Any) -> SourceSpec:
    """An image, labels or a mask as a configuration names it. Raises ConfigError of a wrong URL."""
    return SourceSpec(plain(path), **options)


def plain(text: str) -> str:
    """A URL as it is, if it is well formed; `~` and file:// resolved; any other path as it is."""
    return str(locate(text)) if text.startswith("~") or "://" in text else text


def _evaluate(
    item: Mapping[str, Any], images: Mapping[str, ImageConfig], made: Collection[str]
) -> EvaluateConfig:
    name, annotated = item["name"], item["annotated"]
    if name not in images:
        raise ConfigError(
            f"evaluate: expected the name of one of the images ({', '.join(images)}), got {name!r}."
        )
    try:
        label = spec_of(item["label"], axes=item["axes"])
        mask = None if annotated is None else spec_of(annotated, axes=item["axes"])
        for spec in (label, mask):
            if spec is not None and spec.path not in made:
                local_files(spec.path)
    except UserError as error:
        raise ConfigError(f"evaluate ({name}): {error}") from error
    return EvaluateConfig(
        name=name,
        label=label,
        annotated=mask,
        values=None if item["values"] is None else tuple(item["values"]),
        measures=tuple(item["measures"]),
    )


def _check_names(images: Sequence[Mapping[str, Any]]) -> None:
    repeated = [name for name, times in Counter(i["name"] for i in images).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"images: expected a different name for each image, but {', '.join(repeated)} stands "
            f"more than once. The name is the folder of the results; choose another."
        )
    for index, item in enumerate(images):
        if item.get("level") is not None and item.get("level_pixel_size") is not None:
            raise ConfigError(
                f"images[{index}] ({item['name']}): expected `level` or `level_pixel_size`, got "
                f"both. Leave one out."
            )


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value with the defaults of its schema where it leaves keys out."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        filled = {
            key: _with_defaults(value.get(key, of_key.get("default")), of_key)
            for key, of_key in properties.items()
            if key in value or "default" in of_key
        }
        return {**value, **filled}
    if isinstance(value, list) and "items" in schema:
        return [_with_defaults(item, schema["items"]) for item in value]
    return value


def _sentence(error: ValidationError) -> str:
    key = error.json_path.removeprefix("$").removeprefix(".") or "the configuration"
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(schema["properties"])
        unknown = [name for name in error.instance if name not in known]
        near = get_close_matches(str(unknown[0]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
        return f"{key}: unknown key {unknown[0]!r}{hint}"
    description = schema.get("description", "")
    return f"{key}: {error.message}." + (f" Expected: {description}" if description else "")


def _sizes(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def scheduler_address(configured: str | None) -> str | None:
    """The scheduler to use: of the configuration, or of DASK_SCHEDULER_ADDRESS."""
    return configured or os.environ.get("DASK_SCHEDULER_ADDRESS")
