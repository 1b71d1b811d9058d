"""The images that the workflow reads, by what lies behind a path; see `base` for what they offer.

Listing is apart from opening, since the workflow is planned where images may be slow to open:
`local_files` only reads names, `file_signature` only sizes and times. A format is recognised by its
first bytes, never by a suffix. The libraries of a format are imported when such an image is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from stat import S_ISDIR

from unet.errors import SourceError
from unet.sources.base import Source, SourceSpec
from unet.sources.file import open_file
from unet.sources.image import Image, RawImage
from unet.storage.location import Location, RemotePath, locate

ZARR_METADATA = ("zarr.json", ".zattrs", ".zarray", ".zgroup")
SLICE_SUFFIXES = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAGIC = {
    b"II\x2a\x00": "tiff",
    b"MM\x00\x2a": "tiff",
    b"II\x2b\x00": "tiff",
    b"MM\x00\x2b": "tiff",
    b"\x89PNG": "raster",
    b"\xff\xd8\xff": "raster",
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npy",
}


def open_source(spec: SourceSpec) -> Source:
    """Open the image behind `spec`, of whatever format.

    Raises SourceError if it is not there, is not an image this project reads, is damaged, or does
    not say what has to be known and the spec does not say it either.
    """
    found = _find(spec)
    try:
        return Image(spec, found)
    except SourceError:
        found.pixels.close()
        raise


def local_files(path: str) -> list[str]:
    """The files of an image on this machine, as a workflow declares them; none of a URL.

    No server is asked, so that a workflow can be planned without a network.
    """
    return source_files(path) if isinstance(locate(path), Path) else []


def file_signature(path: str, most: int) -> str:
    """What changes when an image on this machine does: a name of its files' sizes and times.

    most  files and folders that are looked at: of a Zarr those above first, and of its folders
          the times too, since a chunk that is replaced by another gives its folder a new one

    Empty for a URL: no server is asked. Raises SourceError if there is nothing to read.
    """
    place = locate(path)
    if not isinstance(place, Path):
        return ""
    files = source_files(path)
    there = _inside(place, most) if _is_zarr(files) else map(Path, files)
    seen = hashlib.sha256()
    for file in islice(there, most):
        seen.update(f"{file} {_stamp(file)}\n".encode())
    return seen.hexdigest()[:16]


def _inside(folder: Path, most: int) -> Iterator[Path]:
    """A folder and what lies in it, breadth first, at most so many of each folder."""
    yield folder
    folders = deque([folder])
    while folders:
        with suppress(OSError), os.scandir(folders.popleft()) as entries:
            for entry in sorted(islice(entries, most), key=lambda entry: entry.name):
                yield Path(entry)
                if entry.is_dir():
                    folders.append(Path(entry))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:  # such as a link that leads nowhere: whether it matters is seen when it is read
        return None
    return (0 if S_ISDIR(found.st_mode) else found.st_size), found.st_mtime_ns


def _is_zarr(files: list[str]) -> bool:
    return Path(files[0]).name in ZARR_METADATA


def source_files(path: str) -> list[str]:
    """The files that an image is made of; no image is opened.

    A file is itself; a folder of slices or a glob is its files in natural order (slice_2 before
    slice_10); a Zarr image is its metadata files. Of a URL its server is asked. Raises SourceError
    if there is nothing to read.
    """
    try:
        return _listed(path, locate(path))
    except OSError as error:
        raise SourceError(
            f"{path} cannot be listed ({error}). Change its permissions, or the path."
        ) from error


def _listed(path: str, place: Location) -> list[str]:
    if place.is_dir():
        metadata = [str(place / name) for name in ZARR_METADATA if (place / name).is_file()]
        return metadata or _slices_in(place)
    if place.is_file():
        if isinstance(place, Path) and not os.access(place, os.R_OK):
            raise SourceError(f"{path} is there but may not be read. Change its permissions.")
        return [path]
    if any(sign in path for sign in "*?["):
        return _matches(path)
    if isinstance(place, RemotePath):
        raise SourceError(
            f"{path} does not exist: its server has no such file, and lists none under this name. "
            "The URL is probably misspelt; Zarr images and folders are read from s3:// only."
        )
    raise SourceError(
        f"{path} does not exist. The path is probably misspelt, or relative to another folder than "
        f"{Path.cwd()}; correct it in the configuration."
    )


def _find(spec: SourceSpec) -> RawImage:
    files = source_files(spec.path)
    if files == [spec.path]:
        return _find_file(spec)
    if _is_zarr(files):
        from unet.sources.zarr_source import find_zarr

        return find_zarr(spec)
    from unet.sources.slices import find_stack

    return find_stack(spec, files, _find_file)


def _find_file(spec: SourceSpec) -> RawImage:
    """What one file holds, told by its first bytes."""
    try:
        with closing(open_file(spec.path)) as file:
            (start,) = file.pieces([(0, min(8, file.size))])
    except OSError as error:
        raise SourceError(f"{spec.path} cannot be opened ({error}).") from error
    kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if kind == "tiff":
        from unet.sources.tiff import find_tiff

        return find_tiff(spec)
    if kind == "npy":
        from unet.sources.npy import find_npy

        return find_npy(spec)
    if kind == "raster":
        from unet.sources.slices import find_raster

        return find_raster(spec)
    raise SourceError(
        f"{spec.path} is not an image this project reads: expected TIFF (also SVS, NDPI, SCN, "
        f"QPTIFF, OME-TIFF), PNG, JPEG, .npy, .npz, or a Zarr folder, but it starts with "
        f"{start!r}. Convert it, for example to OME-TIFF or OME-Zarr with bioformats2raw."
    )


def _slices_in(folder: Location) -> list[str]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in SLICE_SUFFIXES and p.is_file()]
    files = [p for p in files if not p.name.startswith(".")]
    kinds = sorted({SLICE_SUFFIXES[p.suffix.lower()] for p in files})
    if not files:
        raise SourceError(
            f"{folder} holds neither Zarr metadata nor TIFF, PNG or JPEG files. Expected an image "
            "as Zarr, or a folder of its slices; check the path."
        )
    if len(kinds) > 1:
        raise SourceError(
            f"{folder} holds {' and '.join(kinds)} files, so it is unclear which are the slices. "
            f"Set the path to a glob, such as {folder / '*'}{files[0].suffix}."
        )
    return _natural(files)


def _matches(pattern: str) -> list[str]:
    """The files that a glob matches; the folders before its first sign are taken as they are."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    found = locate("/".join(parts[:first]) or ("/" if first else "")).glob("/".join(parts[first:]))
    files = [p for p in found if p.is_file() and not p.name.startswith(".")]
    if not files:
        raise SourceError(
            f"{pattern} matches no file. Expected the slices of one image; check the glob, which "
            f"is relative to {Path.cwd()}."
        )
    return _natural(files)


def _natural(files: Sequence[Location]) -> list[str]:
    """Sorted so that numbers count as numbers."""

    def key(path: str) -> list[int | str]:
        return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path)]

    return sorted((str(p) for p in files), key=key)
