"""What passes between stages besides pixels: small JSON files, written whole or not at all.

A manifest is a frozen dataclass. Equal content gives equal bytes, so Snakemake sees that nothing
changed and does not run what depends on it.
"""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from unet.errors import StoreError
from unet.storage.durable import sync_file, sync_folder

T = TypeVar("T")


def write_manifest(path: Path, manifest: Any) -> None:
    """Write a dataclass as JSON."""
    write_whole(path, (json.dumps(dataclasses.asdict(manifest), indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of which a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    sync_file(partial)
    partial.replace(path)
    sync_folder(path.parent)


def read_manifest(path: Path, kind: type[T]) -> T:
    """Read what `write_manifest` wrote. Raises StoreError where the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        built: T = _build(kind, content)
    except FileNotFoundError as error:
        raise StoreError(
            f"Expected the manifest {path}, and found none: its stage has not run, or the file "
            f"was deleted. Run the workflow again; it makes what is missing."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"Expected {path} to be a manifest of this version, but it does not read as one "
            f"({error}). Delete it and run the workflow again."
        ) from error
    return built


def _build(kind: Any, content: Any) -> Any:
    """`content` as the type `kind`: dataclasses, tuples, dicts, optionals and plain values."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        if content is None:
            return None
        return _build(options[0], content) if len(options) == 1 else content
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: _build(hints[name], content[name]) for name in fields})  # type: ignore[operator]
    if origin is tuple:
        inner = get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], item) for item in content)
        return tuple(_build(i, item) for i, item in zip(inner, content, strict=True))
    if origin is dict:
        of_key, of_value = get_args(kind)
        return {of_key(key): _build(of_value, value) for key, value in content.items()}
    return content
