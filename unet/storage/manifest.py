"""What passes between stages besides pixels: small JSON files, written whole or not at all.

A manifest is a frozen dataclass. Equal content gives equal bytes, so Snakemake sees that nothing
changed and does not run what depends on it. What is read is checked by msgspec against the types of
the fields, since a manifest may be of another version, or changed by hand.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

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
    """Read what `write_manifest` wrote.

    Raises StoreError where the file is something else: a value of another type than `kind` says,
    a key more or a key less.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = msgspec.convert(content, kind)
    except FileNotFoundError as error:
        raise StoreError(
            f"Expected the manifest {path}, and found none: its stage has not run, or the file "
            f"was deleted. Run the workflow again; it makes what is missing."
        ) from error
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        key = place.strip("`").removeprefix("$").lstrip(".")
        reason = message[0].lower() + message[1:]
        raise _not_a_manifest(path, f"{key}: {reason}" if key else reason) from error
    except ValueError as error:
        raise _not_a_manifest(path, str(error)) from error
    difference = next(_differing_keys(content, dataclasses.asdict(cast(Any, manifest))), None)
    if difference is not None:
        raise _not_a_manifest(path, difference)
    return manifest


def _differing_keys(content: Any, read: Any, place: str = "") -> Iterator[str]:
    """The keys that only `content` has or only what was `read` of it.

    msgspec passes over the former, and gives a field that has a default the latter
    (https://github.com/msgspec/msgspec/issues/791).
    """
    if isinstance(read, dict):
        for key in sorted(content.keys() | read.keys()):
            name = f"{place}.{key}" if place else key
            if key not in read:
                yield f"{name}: unknown key"
            elif key not in content:
                yield f"{name}: missing key"
            else:
                yield from _differing_keys(content[key], read[key], name)
    elif isinstance(read, tuple):
        for index, (item, read_item) in enumerate(zip(content, read, strict=True)):
            yield from _differing_keys(item, read_item, f"{place}[{index}]")


def _not_a_manifest(path: Path, why: str) -> StoreError:
    return StoreError(
        f"Expected {path} to be a manifest of this version, but it does not read as one "
        f"({why}). Delete it and run the workflow again."
    )
