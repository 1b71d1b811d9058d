"""A short name for everything that a result depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """A short name for everything in `parts`: 16 hex digits of the sha256 of their JSON."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"Expected plain values or dataclasses in a fingerprint, got {value!r}.")
