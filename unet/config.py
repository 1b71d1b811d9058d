"""The configuration, read once: checked against its schema, and frozen.

Why not leave it to the rules: a typo must be an error that names the key before anything runs, and
a rule that reads a dictionary can only fail late. Nothing here opens an image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from unet.errors import ConfigError, UserError
from unet.model_folder import find_model
from unet.plan import Request
from unet.sources import source_files
from unet.sources.base import SourceSpec

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
class Config:
    """The whole configuration; the stages' settings hold for every image.

    proof  the blocks and the seed of `unet.stages.verify.Asked`
    """

    images: dict[str, ImageConfig]
    request: Request
    device: str
    scheduler: str | None
    threshold: float
    with_image: bool
    block_seconds: float | None
    proof: dict[str, int]


def read_config(raw: Mapping[str, Any], schema_file: Path, made: Collection[str] = ()) -> Config:
    """Check a configuration and freeze it.

    raw   as YAML gives it, keys of `workflow/schemas/config.schema.yaml`
    made  paths that need not be there yet, since a rule makes them

    Raises ConfigError that names the key.
    """
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    errors = sorted(Validator(schema).iter_errors(raw), key=lambda e: e.json_path)
    if errors:
        raise ConfigError("; ".join(_sentence(error) for error in errors[:5]))
    filled = _with_defaults(raw, schema)
    _check_names(filled["images"])
    images = {}
    for index, item in enumerate(filled["images"]):
        image = _image(item)
        try:
            if image.source.path not in made:
                source_files(image.source.path)
            find_model(image.model)
        except UserError as error:
            raise ConfigError(f"images[{index}] ({image.name}): {error}") from error
        images[image.name] = image
    minutes = filled["predict"]["block_minutes"]
    split, predict, stitch = filled["split"], filled["predict"], filled["stitch"]
    return Config(
        images=images,
        request=Request(
            memory=int(split["memory"] * GIGABYTE),
            precision=predict["precision"],
            shard=_sizes(split["shard"]),
            chunk=_sizes(split["chunk"]),
            core=_sizes(split["core"]),
            tolerance=predict["tolerance"],
        ),
        device=predict["device"],
        scheduler=predict["scheduler"],
        threshold=stitch["threshold"],
        with_image=stitch["image"],
        block_seconds=None if minutes is None else 60.0 * minutes,
        proof=filled["verify"],
    )


def _image(item: Mapping[str, Any]) -> ImageConfig:
    channels = item["channels"]
    return ImageConfig(
        name=item["name"],
        model=item["model"],
        source=SourceSpec(
            path=item["path"],
            axes=item["axes"],
            level=item["level"],
            level_pixel_size=item["level_pixel_size"],
            channels=None if channels is None else tuple(channels),
            pixel_size=item["pixel_size"],
        ),
    )


def _check_names(images: list[dict[str, Any]]) -> None:
    twice = [name for name, times in Counter(i["name"] for i in images).items() if times > 1]
    if twice:
        raise ConfigError(
            f"images: expected a different name for each image, but {', '.join(twice)} stands "
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
        named = {
            key: _with_defaults(value.get(key, of_key.get("default")), of_key)
            for key, of_key in properties.items()
            if key in value or "default" in of_key
        }
        return {**value, **named}
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
    said = schema.get("description", "")
    return f"{key}: {error.message}." + (f" Expected: {said}" if said else "")


def _sizes(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
