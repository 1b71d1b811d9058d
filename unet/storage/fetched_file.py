"""A file that is fetched once, and that nothing here ever replaces or deletes.

Why a receipt: Snakemake deletes what a job declares as its output before the job starts. A file of
somebody else that lies at the same place would be gone. So the job declares an empty file, and the
file itself is put into its place only if nothing is there.

    demo-data/nuclei.tif                   is never replaced
    demo-data/.receipts/nuclei.tif         the receipt, which Snakemake may delete
    demo-data/.receipts/nuclei.tif.json    the record, from which it sees that the file has changed
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from unet.errors import SourceError
from unet.model.folder import file_sha256
from unet.storage.durable import sync_file
from unet.storage.repairs import read_repairs, write_repairs


def is_there(file: Path, sha256: str) -> bool:
    """Whether a file is in its place. Raises SourceError if something else is there."""
    if not os.path.lexists(file):
        return False
    if not file.is_file() or file_sha256(file) != sha256:
        raise SourceError(
            f"Expected nothing at {file}, or the file with the sha256 {sha256}, which is fetched "
            f"to there, found something else. It is left as it is: move it to another folder, such "
            f"as data, name that place in the configuration, and run again."
        )
    return True


def place(file: Path, content: bytes) -> None:
    """Put a new file into its place; whole or not at all, where there are hard links.

    Raises SourceError if something is there by now.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".fetched-") as folder:
        whole = Path(folder, file.name)
        whole.write_bytes(content)
        sync_file(whole)
        try:
            _link(whole, file)
        except FileExistsError as error:
            raise SourceError(
                f"Expected nothing at {file}, but something appeared there meanwhile. It is left "
                f"as it is: run again, and it is checked."
            ) from error


def _link(source: Path, target: Path) -> None:
    """Have a file at `target` too. Raises FileExistsError if something is there."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb") as opened:
            opened.write(source.read_bytes())


def write_record(record: Path, file: Path, repairs: int) -> None:
    """Write the record of a file that is in its place."""
    write_repairs(record, _look(file), repairs)


def fetched_repairs(record: Path, file: Path) -> int:
    """How often a file was fetched or checked again: once more than before, if it has to be now."""
    return read_repairs(record, lambda look: file.is_file() and _look(file) == look)


def _look(file: Path) -> str:
    """Bytes, and the time of the last change in nanoseconds."""
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
