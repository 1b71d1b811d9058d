"""The zarr.json files of a store: what they have to say, and what they say.

Why they are compared, and written whole: a zarr.json that was cut or changed makes of the same
shards another image, or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

from unet.storage.location import Location
from unet.storage.ownership import write_whole

NAME = "zarr.json"
ATTRIBUTES = "attributes"

Document = dict[str, Any]


def group_document(attributes: dict[str, Any]) -> Document:
    """The zarr.json of a group, as the specification of Zarr v3 has it."""
    return {"zarr_format": 3, "node_type": "group", ATTRIBUTES: attributes}


def shard_names(document: Document) -> Iterator[str]:
    """The files of an array of ours, in its folder, in the order of their blocks."""
    shape, side = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (range(-(-n // s)) for n, s in zip(shape, side, strict=True))
    return ("/".join(map(str, ("c", *position))) for position in product(*counts))


def read_document(folder: Location) -> Document | None:
    """The zarr.json of an array or a group; None where there is none, or it does not read."""
    try:
        content = json.loads((folder / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    is_whole = isinstance(content, dict) and isinstance(content.get(ATTRIBUTES, {}), dict)
    return content if is_whole else None


def write_document(folder: Location, expected: Document) -> None:
    """Have the zarr.json of a folder of ours say what is expected; what else it says stays."""
    actual = read_document(folder) or {}
    if not differing_keys(expected, actual):
        return
    attributes = {**actual.get(ATTRIBUTES, {}), **expected.get(ATTRIBUTES, {})}
    content = {**expected, ATTRIBUTES: attributes}
    write_whole(folder / NAME, json.dumps(content, indent=2).encode())


def differing_keys(expected: Document, actual: Document) -> list[str]:
    """The keys, of a document and of its attributes, that do not say what is expected.

    Attributes may say more: a person may list further labels, a viewer keep its colours there.
    """
    before, after = expected.get(ATTRIBUTES, {}), actual.get(ATTRIBUTES, {})
    return [
        key for key, value in expected.items() if key != ATTRIBUTES and actual.get(key) != value
    ] + [key for key, value in before.items() if key not in after or not _has(after[key], value)]


def write_attributes(group: Location, attributes: dict[str, Any]) -> None:
    """Make `group` a Zarr v3 group with these attributes, over those that it has, by one write."""
    write_document(group, group_document(attributes))


def read_attributes(group: Location) -> dict[str, Any]:
    """The attributes of a group; none where there is no group."""
    attributes: dict[str, Any] = (read_document(group) or {}).get(ATTRIBUTES, {})
    return attributes


def _has(actual: Any, expected: Any) -> bool:
    """Whether a value of JSON holds all of another: the same keys and, in order, the same items."""
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and _has(actual[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        items = iter(actual if isinstance(actual, list) else [])
        return all(any(_has(item, value) for item in items) for value in expected)
    return bool(actual == expected)
