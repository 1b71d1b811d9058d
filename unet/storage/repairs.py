"""How often a job had to mend what it left: a parameter of its rule.

Why a number: a rule runs again when its parameter changes, and then never for that again. Snakemake
looks at receipts and manifests only, and would not see that what they stand for is gone or damaged.

Why a file that no rule declares: Snakemake deletes what is declared before the job starts, and the
job asks for its parameters again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unet.errors import StoreError
from unet.storage.manifest import read_manifest, write_manifest


@dataclass(frozen=True)
class Repairs:
    """The manifest of what a job left.

    left   names it, so that it can be recognised
    count  how often it was made again, since it was not as it was left
    """

    left: str
    count: int


def write_repairs(file: Path, left: str, count: int) -> None:
    """Write what a job left, at its end."""
    write_manifest(file, Repairs(left, count))


def read_repairs(file: Path, is_as_it_was: Callable[[str], bool]) -> int:
    """How often something was made again: once more than the file says, if it has to be now.

    is_as_it_was  whether the thing of this name is as it was left
    """
    if not file.exists():
        return 0
    try:
        repairs = read_manifest(file, Repairs)
    except StoreError:  # damaged: a number that it never had
        return -file.stat().st_mtime_ns
    return repairs.count + (not is_as_it_was(repairs.left))
