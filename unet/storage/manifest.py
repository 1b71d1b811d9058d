"""What passes between stages besides pixels: small JSON files, written whole or not at all.

A manifest is a frozen dataclass. Equal content gives equal bytes, so Snakemake sees that nothing
changed and does not run what depends on it. What is read is checked by msgspec against the types of
the fields, since a manifest may be of another version. Its last key is a checksum of the others: a
digit that was changed on the disk, or by hand, would give another mask without a word.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from unet.errors import StoreError
from unet.storage.digest import digest
from unet.storage.ownership import write_whole

T = TypeVar("T")

CHECKSUM = "checksum"


def write_manifest(path: Path, manifest: Any) -> None:
    """Write a dataclass as JSON."""
    content = dataclasses.asdict(manifest)
    with_checksum = {**content, CHECKSUM: _checksum(content)}
    write_whole(path, (json.dumps(with_checksum, indent=2) + "\n").encode())


def read_manifest(path: Path, kind: type[T]) -> T:
    """Read what `write_manifest` wrote.

    Raises StoreError where the file is something else: a value of another type than `kind` says,
    a key more or a key less.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
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
    if checksum != _checksum(content):
        raise _not_a_manifest(path, "its checksum is of another content")
    return manifest


def _checksum(content: dict[str, Any]) -> str:
    """Of the content of a manifest, however its lines are laid out."""
    return digest(json.dumps(content, sort_keys=True).encode()).hex()


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
        f"Expected {path} to be a manifest of this version, as it was written, but it is not "
        f"({why}). Delete it and run the workflow again."
    )
