"""What each run wrote as its result: so that what others put there, or added, is recognised.

Why a record beside the result, and not a mark in it: a mark says that a store is ours, but not
which of its files. A person draws labels into a result, a viewer saves its colours there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from unet.errors import StoreError
from unet.storage.ledger import recorded
from unet.storage.location import Location, RemotePath, versions
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.metadata import (
    ATTRIBUTES,
    NAME,
    Document,
    differing_keys,
    read_attributes,
    read_document,
    shard_names,
    write_document,
)
from unet.storage.ownership import PARTIAL, refuse_files_of_others

OURS = "unet"  # the attribute of a result's root that says of which run it is, and how it verified
SHARD = re.compile(r"c(/\d+)*")


@dataclass(frozen=True)
class ResultRecord:
    """The zarr.json files of a run's result; its other files are the shards of their arrays.

    run        names the run
    plan       the fingerprint of its plan
    documents  each, by its folder in the result; the root is "."
    ledgers    of each array, by its folder: the ledger of its shards, a path in the results folder
    """

    run: str
    plan: str
    documents: dict[str, dict[str, Any]]
    ledgers: dict[str, str]


def write_record(records: Path, record: ResultRecord) -> None:
    """Record what a result consists of, before it takes its place.

    records  the folder of an image's records
    """
    write_manifest(_file(records, record.run), record)


def run_of(result: Location) -> str | None:
    """The run that a result says it is of; None where there is none, or it does not read."""
    ours = read_attributes(result).get(OURS)
    run = ours.get("run") if isinstance(ours, dict) else None
    return run if isinstance(run, str) else None


def own_files(records: Path) -> Callable[[Path, str], bool]:
    """A function that says whether a run of ours wrote a file, given by its path in a result."""
    known = [read_manifest(file, ResultRecord) for file in sorted(records.glob("stitch-*.json"))]
    documents = [(folder, each) for record in known for folder, each in record.documents.items()]
    arrays = {PurePosixPath(folder) for folder, each in documents if _is_array(each)}

    def owns(result: Path, file: str) -> bool:
        path = PurePosixPath(file)
        if path.name == NAME:
            actual, folder = read_document(result / path.parent), str(path.parent)
            written = [each for where, each in documents if where == folder]
            # One that does not read is damaged: nothing of others is in it.
            return bool(written) and (actual is None or any(_is(actual, w) for w in written))
        return bool(PARTIAL.fullmatch(path.name)) or any(
            bool(SHARD.fullmatch(path.relative_to(array).as_posix()))
            for array in arrays.intersection(path.parents)
        )

    return owns


def refuse_result_of_others(
    records: Path, result: Location, may_stay: Callable[[ResultRecord], bool]
) -> None:
    """Raise StoreError if the result that has to make way holds what no run of ours wrote.

    Called before expensive work; `ownership.publish` looks again.

    may_stay  whether the result of a run of ours need not make way, as far as is known yet
    """
    if isinstance(result, RemotePath):
        return
    run = run_of(result)
    is_ours = run is not None and _file(records, run).exists()
    if run and is_ours and may_stay(read_manifest(_file(records, run), ResultRecord)):
        return
    refuse_files_of_others(result, own_files(records))


def mend_documents(records: Path, record: ResultRecord, result: Location) -> list[str]:
    """Write the damaged zarr.json files of a result again; returns which.

    Nothing is written where another result, or none, is in its place.

    Raises StoreError where the root does not read, and somebody else's files lie there.
    """
    if run_of(result) != record.run:
        is_there = isinstance(result, RemotePath) or result.exists()
        if not is_there or read_document(result) is not None:
            return []
        if isinstance(result, Path):
            refuse_files_of_others(result, own_files(records))
    damaged = list(_damaged_documents(record, result))
    for folder in damaged:
        write_document(result / folder, record.documents[folder])
    return [str(PurePosixPath(folder) / NAME) for folder in damaged]


def looks_whole(records: Path, run: str, result: Path, most_shards: int) -> bool:
    """Whether the result of a run is there and, by the sizes and times of its files, as written.

    Quick, and no more than a look: `verify` reads every shard.

    most_shards  to look at; of a result that has more, only the zarr.json files are looked at
    """
    if run_of(result) != run or not _file(records, run).exists():
        return False
    record = read_manifest(_file(records, run), ResultRecord)
    if next(_damaged_documents(record, result), None):
        return False
    shards = {
        array: list(islice(shard_names(record.documents[array]), most_shards + 1))
        for array in record.ledgers
    }
    return sum(map(len, shards.values())) > most_shards or all(
        _look_as_written(result / array, shards[array], records.parent / ledger)
        for array, ledger in record.ledgers.items()
    )


def _look_as_written(array: Path, shards: list[str], ledger: Path) -> bool:
    """Whether each shard of an array has the size and the time that its ledger says."""
    version_of, is_written = versions(array), bytearray(len(shards))
    for block, written in recorded(ledger):
        if block < len(shards) and not is_written[block]:
            is_written[block] = version_of(array / shards[block]) == (
                written.bytes,
                written.version,
            )
    return all(is_written)


def _damaged_documents(record: ResultRecord, result: Location) -> Iterator[str]:
    """The folders whose zarr.json does not read, or does not say what was written.

    The attributes of a group may say something else: a person may have meant that.
    """
    for folder, written in record.documents.items():
        expected = written if _is_array(written) else {**written, ATTRIBUTES: {}}
        actual = read_document(result / folder)
        if actual is None or differing_keys(expected, actual):
            yield folder


def refuse_changed_groups(record: ResultRecord, result: Location) -> None:
    """Raise StoreError, naming it, if a zarr.json of a result does not say what was written."""
    for folder, written in record.documents.items():
        keys = differing_keys(written, read_document(result / folder) or {})
        keys = [key for key in keys if key != OURS]
        if keys:
            raise StoreError(
                f"Expected {result / folder / NAME} to say what was written there, but its "
                f"{', '.join(keys)} changed since: a viewer or a person changed it, or it is "
                f"damaged. To have it as it was, delete this file and run `snakemake verify`, "
                f"which makes it again; what others added to it is then lost."
            )


def _file(records: Path, run: str) -> Path:
    return records / f"{run}.json"


def _is(actual: Document, written: Document) -> bool:
    """Whether a zarr.json says what was written and nothing else, but for what is ours."""
    actual, written = (
        {**each, ATTRIBUTES: {k: v for k, v in each.get(ATTRIBUTES, {}).items() if k != OURS}}
        for each in (actual, written)
    )
    return actual == written


def _is_array(document: Document) -> bool:
    return document.get("node_type") == "array"
