"""YAML that somebody else may have written, read within bounds and without running it.

Why not `yaml.safe_load` alone: it runs nothing, but a small file can name one part of itself again
and again, so that whoever walks through what it says never ends. A number of a million digits, or
a hundred thousand brackets, stop a program just as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from unet.errors import excerpt

MOST_BYTES = 2_000_000
MOST_PARTS = 1_000_000  # of which a part counts again wherever an alias stands for it
MOST_LEVELS = 50
MOST_CHARACTERS = 100_000  # of one value
LARGEST_INTEGER = 1 << 63

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where it was built


def read_yaml(path: Path) -> Any:
    """What a YAML file says. Raises OSError, and ValueError with the reason it cannot be used."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than the {MOST_BYTES:,} bytes that are read of such a file")
    try:
        text = content.decode()
        try:
            value = json.loads(text)  # which is nearly YAML, but for its tabs
        except (ValueError, RecursionError):
            _refuse_endless(text)
            value = yaml.load(text, Loader)  # noqa: S506  # both of the loaders are safe
    # Beside its own errors the parser raises those of the values, such as of a 30th of February.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"it does not parse: {excerpt(error)}") from error
    refuse_unwieldy(value)
    return value


def refuse_unwieldy(value: Any) -> None:
    """Raise ValueError for more than a person writes: parts, levels, characters or digits."""
    parts = _count_parts(value, {}, 0)
    if parts > MOST_PARTS:
        raise ValueError(f"with its aliases written out it has more than {MOST_PARTS:,} parts")


def _count_parts(value: Any, counted: dict[int, int], level: int) -> int:
    """How many parts a value has; `counted` has those of the values that were seen before."""
    if isinstance(value, str | bytes) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"one of its values has more than {MOST_CHARACTERS:,} characters")
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise ValueError("one of its numbers has more than 64 bits")
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if level >= MOST_LEVELS:
        raise ValueError(f"it is nested in more than {MOST_LEVELS} levels, or holds itself")
    if id(value) not in counted:
        inside = chain(value, value.values() if isinstance(value, Mapping) else ())
        counted[id(value)] = 1 + sum(_count_parts(part, counted, level + 1) for part in inside)
    return counted[id(value)]


def _refuse_endless(text: str) -> None:
    """Raise ValueError for what a parser needs too long, or too many calls of itself, to build."""
    level = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_CHARACTERS:
            raise ValueError(f"one of its values has more than {MOST_CHARACTERS:,} characters")
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise ValueError(f"it is nested in more than {MOST_LEVELS} levels")
