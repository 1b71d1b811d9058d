"""The images that the workflow reads, of any format; `base` says what an image offers.

To plan the workflow no image is opened, since that may be slow: `local_files` only reads names, and
in a single file those of its other parts; `file_signature` also reads sizes and times. A format is
recognised by its first bytes, never by a suffix. The libraries of a format are imported when such
an image is opened.
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
from unet.sources.tiff.parts import find_parts
from unet.storage.location import Location, RemotePath, locate

ZARR_METADATA = ("zarr.json", ".zattrs", ".zarray", ".zgroup")
WILDCARDS = frozenset("*?[")
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
    """Open the image that `spec` names, of any format.

    Raises SourceError if it does not exist, has an unknown format, is damaged, or if neither the
    file nor the spec has what has to be known, such as the axes.
    """
    raw = _open_raw(spec)
    try:
        return Image(spec, raw)
    except SourceError:
        raw.pixels.close()
        raise


def local_files(path: str) -> list[str]:
    """The files of an image on this machine; none for a URL.

    No server is asked, so that a workflow can be planned without a network.
    """
    return source_files(path) if isinstance(locate(path), Path) else []


def file_signature(path: str, most: int) -> str:
    """A digest of the sizes and times of an image's files: it changes when a file is changed.

    most  files and folders to include. Of a Zarr image, upper folders come first. Folders count
          too: replacing a chunk by another changes the time of its folder.

    Empty for a URL: no server is asked. Raises SourceError if there is nothing to read.
    """
    location = locate(path)
    if not isinstance(location, Path):
        return ""
    files = source_files(path)
    paths = _walk(location, most) if _is_zarr(files) else map(Path, files)
    digest = hashlib.sha256()
    for file in islice(paths, most):
        digest.update(f"{file} {_size_and_time(file)}\n".encode())
    return digest.hexdigest()[:16]


def _walk(folder: Path, most: int) -> Iterator[Path]:
    """A folder and everything in it, breadth first, at most `most` entries of each folder."""
    yield folder
    folders = deque([folder])
    while folders:
        with suppress(OSError), os.scandir(folders.popleft()) as entries:
            for entry in sorted(islice(entries, most), key=lambda entry: entry.name):
                yield Path(entry)
                if entry.is_dir():
                    folders.append(Path(entry))


def _size_and_time(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:  # such as a broken link: if it matters, reading the image raises an error
        return None
    return (0 if S_ISDIR(stat.st_mode) else stat.st_size), stat.st_mtime_ns


def _is_zarr(files: list[str]) -> bool:
    return Path(files[0]).name in ZARR_METADATA


def source_files(path: str) -> list[str]:
    """The files that an image is made of; no image is opened.

    For a folder of slices or a glob these are its files in natural order (slice_2 before slice_10),
    for a Zarr image its metadata files, for a part of an OME-TIFF image this part and then the
    others. For a URL the server is asked. Raises SourceError if there is nothing to read.
    """
    location = locate(path)
    files = _named_files(path)
    if not isinstance(location, Path) or files != [path]:
        return files
    try:
        return [path, *map(str, find_parts(location))]
    except OSError as error:
        raise _cannot_list(path, error) from error


def _named_files(path: str) -> list[str]:
    """The files that a path names: a file, slices, or the metadata of a Zarr image."""
    try:
        return _files_at(path, locate(path))
    except OSError as error:
        raise _cannot_list(path, error) from error


def _cannot_list(path: str, error: OSError) -> SourceError:
    return SourceError(f"{path} cannot be listed ({error}). Change its permissions, or the path.")


def _files_at(path: str, location: Location) -> list[str]:
    if location.is_dir():
        metadata = [location / name for name in ZARR_METADATA if (location / name).is_file()]
        return list(map(str, metadata)) or _slices_in(location)
    if location.is_file():
        if isinstance(location, Path) and not os.access(location, os.R_OK):
            raise SourceError(f"{path} is there but may not be read. Change its permissions.")
        return [path]
    if any(character in path for character in WILDCARDS):
        return _glob(path)
    if isinstance(location, RemotePath):
        raise SourceError(
            f"{path} does not exist: its server has no such file, and lists none under this name. "
            "The URL is probably misspelt; Zarr images and folders are read from s3:// only."
        )
    raise SourceError(
        f"{path} does not exist. The path is probably misspelt, or relative to another folder than "
        f"{Path.cwd()}. Correct it."
    )


def _open_raw(spec: SourceSpec) -> RawImage:
    files = _named_files(spec.path)
    if files == [spec.path]:
        return _open_raw_file(spec)
    if _is_zarr(files):
        from unet.sources.zarr_source import open_zarr

        return open_zarr(spec)
    from unet.sources.slices import open_stack

    return open_stack(spec, files, _open_raw_file)


def _open_raw_file(spec: SourceSpec) -> RawImage:
    """The image of one file; its format is recognised by the first bytes."""
    try:
        with closing(open_file(spec.path)) as file:
            (first_bytes,) = file.read_ranges([(0, min(8, file.size))])
    except OSError as error:
        raise SourceError(f"{spec.path} cannot be opened ({error}).") from error
    kind = next((kind for magic, kind in MAGIC.items() if first_bytes.startswith(magic)), None)
    if kind == "tiff":
        from unet.sources.tiff.series import open_tiff

        return open_tiff(spec)
    if kind == "npy":
        from unet.sources.npy import open_npy

        return open_npy(spec)
    if kind == "raster":
        from unet.sources.slices import open_raster

        return open_raster(spec)
    raise SourceError(
        f"{spec.path} is not an image this project reads: expected TIFF (also SVS, NDPI, SCN, "
        f"QPTIFF, OME-TIFF), PNG, JPEG, .npy, .npz, or a Zarr folder, but it starts with "
        f"{first_bytes!r}. Convert it, for example to OME-TIFF or OME-Zarr with bioformats2raw."
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
    return _natural_order(files)


def _glob(pattern: str) -> list[str]:
    """The files that a glob matches; folders before its first wildcard are plain names."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if not WILDCARDS.isdisjoint(part))
    folder = locate("/".join(parts[:first]) or ("/" if first else ""))
    files = [
        p
        for p in folder.glob("/".join(parts[first:]))
        if p.is_file() and not p.name.startswith(".")
    ]
    if not files:
        raise SourceError(
            f"{pattern} matches no file. Expected the slices of one image; check the glob, which "
            f"is relative to {Path.cwd()}."
        )
    return _natural_order(files)


def _natural_order(files: Sequence[Location]) -> list[str]:
    """Sorted by name, with the numbers in names compared as numbers."""

    def key(path: str) -> list[int | str]:
        return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path)]

    return sorted((str(p) for p in files), key=key)
