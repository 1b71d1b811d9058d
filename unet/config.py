"""The configuration, read once: apply_schema against its schema, and frozen.

Why here, not in the rules: a typo must be an error that names the key before anything runs. A rule
that reads a dictionary can only fail late. Nothing here opens an image or asks a server.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonschema import ValidationError

from unet.errors import ConfigError, UserError, excerpt
from unet.model.folder import find_model
from unet.planning.options import SplitOptions, StitchOptions
from unet.schema import find_errors, read_schema
from unet.sources import local_files
from unet.sources.base import SourceSpec
from unet.storage.location import locate
from unet.yaml_file import read_yaml, refuse_unwieldy

GIGABYTE = 10**9
TEMPLATE_KEY = "__use_yte__"


@dataclass(frozen=True)
class ImageConfig:
    """One input image: its name, its source, and the model that segments it."""

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


def read_config(
    raw: Mapping[str, Any], schema_file: Path, rule_outputs: Collection[str] = ()
) -> Config:
    """Check a configuration and freeze it.

    raw           as YAML gives it, with the keys of `workflow/schemas/config.schema.yaml`
    rule_outputs  paths that need not exist yet, since a rule makes them

    Raises ConfigError that names the key.
    """
    complete = apply_schema(raw, schema_file)
    images = _images(complete["images"], rule_outputs)
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
        evaluate=tuple(_evaluate(item, images, rule_outputs) for item in complete["evaluate"]),
    )


def check_file(path: Path) -> None:
    """Raise ConfigError for a file that Snakemake should not read: it may run, or never end.

    Why before Snakemake reads it: a file with the key `__use_yte__` is a program to it, and a few
    lines of YAML may take it minutes and gigabytes. If there is none, Snakemake says so.
    """
    if not path.is_file():
        return
    try:
        said = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected YAML or JSON in {path}, but {error}.") from error
    if isinstance(said, Mapping) and TEMPLATE_KEY in said:
        raise ConfigError(
            f"Expected values in {path}, got the key {TEMPLATE_KEY!r}, with which Snakemake runs "
            f"the file as a program. Write out the values, and remove the key."
        )


def _images(
    items: Sequence[Mapping[str, Any]], rule_outputs: Collection[str]
) -> dict[str, ImageConfig]:
    """The images by name, after a check that their files and models exist."""
    _check_names(items)
    images: dict[str, ImageConfig] = {}
    models: set[str] = set()
    for index, item in enumerate(items):
        try:
            image = _image(item)
            if image.source.path not in rule_outputs:
                local_files(image.source.path)
            if image.model not in models:  # most images share one model
                find_model(image.model)
                models.add(image.model)
        except UserError as error:
            raise ConfigError(f"images[{index}] ({item['name']}): {error}") from error
        images[image.name] = image
    return images


def apply_schema(raw: Mapping[str, Any], schema_file: Path) -> dict[str, Any]:
    """A configuration with the defaults of its schema. Raises ConfigError that names the key."""
    try:
        refuse_unwieldy(raw)
    except ValueError as error:
        raise ConfigError(f"Expected a configuration that a person wrote, but {error}.") from error
    schema = read_schema(schema_file)
    errors = find_errors(raw, schema)
    if errors:
        raise ConfigError("; ".join(_sentence(error) for error in errors[:5]))
    return dict(_with_defaults(raw, schema))


def _image(item: Mapping[str, Any]) -> ImageConfig:
    channels = item["channels"]
    return ImageConfig(
        name=item["name"],
        model=resolve_path(item["model"]),
        source=make_spec(
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
        stores = resolve_path(text) if text else None
    except UserError as error:
        raise ConfigError(f"stores: {error}") from error
    if stores and stores.startswith("http"):
        raise ConfigError(
            f"stores: expected a local folder or s3://bucket/path, got {stores}: a web server is "
            f"read only. Set AWS_ENDPOINT_URL, and write s3://, if it is an S3 server."
        )
    return stores


def make_spec(path: str, **options: Any) -> SourceSpec:
    """The spec of an image, labels or a mask. Raises ConfigError for a wrong URL."""
    return SourceSpec(resolve_path(path), **options)


def resolve_path(text: str) -> str:
    """A path without `~` and file://. Raises ConfigError for a URL that is not well formed."""
    return str(locate(text)) if text.startswith("~") or "://" in text else text


def _evaluate(
    item: Mapping[str, Any], images: Mapping[str, ImageConfig], rule_outputs: Collection[str]
) -> EvaluateConfig:
    name, annotated = item["name"], item["annotated"]
    if name not in images:
        raise ConfigError(
            f"evaluate: expected the name of one of the images ({', '.join(images)}), got {name!r}."
        )
    try:
        label = make_spec(item["label"], axes=item["axes"])
        mask = None if annotated is None else make_spec(annotated, axes=item["axes"])
        for spec in (label, mask):
            if spec is not None and spec.path not in rule_outputs:
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
    counts = Counter(image["name"] for image in images)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"images: expected a different name for each image, but {', '.join(duplicates)} occurs "
            f"more than once. The name is the folder of the results; choose another."
        )
    for index, item in enumerate(images):
        if item.get("level") is not None and item.get("level_pixel_size") is not None:
            raise ConfigError(
                f"images[{index}] ({item['name']}): expected `level` or `level_pixel_size`, got "
                f"both. Leave one out."
            )


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value, with the schema's defaults for the keys that it leaves out."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        complete = {
            key: _with_defaults(value.get(key, key_schema.get("default")), key_schema)
            for key, key_schema in properties.items()
            if key in value or "default" in key_schema
        }
        return {**value, **complete}
    if isinstance(value, list) and "items" in schema:
        return [_with_defaults(item, schema["items"]) for item in value]
    return value


def _sentence(error: ValidationError) -> str:
    key = error.json_path.removeprefix("$").removeprefix(".") or "the configuration"
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(schema["properties"])
        unknown = [name for name in error.instance if name not in known]
        name = excerpt(unknown[0])
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
        return f"{key}: unknown key {name!r}{hint}"
    told = f"{excerpt(key)}: {excerpt(error.message)}."
    description = schema.get("description", "")
    return f"{told} Expected: {description}" if description else told


def _sizes(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def scheduler_address(configured: str | None) -> str | None:
    """The scheduler to use: that of the configuration, else that of DASK_SCHEDULER_ADDRESS."""
    return configured or os.environ.get("DASK_SCHEDULER_ADDRESS")
