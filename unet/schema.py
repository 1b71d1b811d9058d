"""Values of YAML compared with a schema, for the configuration and for the description of a model.

Why not the validator as it is: YAML knows .nan and .inf, and a comparison with a limit does not
refuse them. And 2.0 is an integer in JSON, but no number of levels in Python.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

JSON_TYPES = Draft202012Validator.TYPE_CHECKER
TYPES = {
    "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda _, value: JSON_TYPES.is_type(value, "number") and math.isfinite(value),
}
Validator = extend(Draft202012Validator, type_checker=JSON_TYPES.redefine_many(TYPES))  # type: ignore[no-untyped-call]


def read_schema(file: Path) -> dict[str, Any]:
    """A schema of this project."""
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def find_errors(value: Any, schema: dict[str, Any]) -> list[ValidationError]:
    """What in a value breaks the schema, in the order of the keys."""
    return sorted(Validator(schema).iter_errors(value), key=lambda error: error.json_path)
