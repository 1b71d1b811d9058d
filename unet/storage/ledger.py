"""Which blocks are done: an append-only record that a killed run is resumed from.

Why a record, not just the files: a shard in the store may be from another run. Why lines: to record
a block, one line is appended, and where a kill tears the last line only that block is lost. Each
line is one JSON object, {"block": 17, "bytes": 48213, "digest": "9f...", "version": 1732...}. It
counts only if the block's shard is there with this size, and either is the same version of the file
or has this digest. Where the bytes depend on the processor, "by" names the processor.

Every process writes its own file in the ledger's folder and reads all files there. So slabs of one
image can run at the same time, and a run can resume with another number of slabs. The folder
belongs to one fingerprint of all that the blocks depend on: see `unet.storage.workspace`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self


@dataclass(frozen=True)
class Written:
    """A block that is on the disk.

    bytes    of its shard
    digest   names the content of its shard, in hexadecimal
    version  of its file, which changes with each write: its time, or what a server calls it
    by       the processor that computed it, where the last bits depend on that
    """

    bytes: int
    digest: str
    version: int | str
    by: str = ""


def recorded(folder: Path) -> Iterator[tuple[int, Written]]:
    """Every block that some process recorded as done; one that was made again, several times."""
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    yield (
                        int(entry["block"]),
                        Written(
                            int(entry["bytes"]),
                            str(entry["digest"]),
                            entry["version"],
                            entry.get("by", ""),
                        ),
                    )
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a torn line: its block is computed once more


def processors(folder: Path) -> set[str]:
    """The processors that computed the blocks."""
    return {written.by for _, written in recorded(folder) if written.by}


class Ledger:
    """The record of one process, open for appending."""

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{writer}.jsonl"
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        # This newline ends a line that a kill has torn; an empty line is skipped.
        self._stream = self._file.open("a", encoding="utf-8")
        self._stream.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, block: int, written: Written) -> None:
        """Record a block as done, after its shard was written."""
        if self._stream is None:
            raise ValueError("Expected an open ledger; use it in a with statement.")
        entry = {"block": block, **asdict(written)}
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()
