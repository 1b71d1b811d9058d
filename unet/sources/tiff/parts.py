"""The files of an OME-TIFF image that was written as several, found without a library.

Why not by tifffile: the workflow asks this of every image before it plans a job. Here only the
first directory of the file is read, and one text that it leads to.

    header -> first directory -> entry 270 -> OME-XML: <UUID FileName="part1.ome.tif">
"""

from __future__ import annotations

import html
import os
import re
import struct
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

# Of a byte order and version: how an offset, the number of entries, and an entry are written. An
# entry is a tag, a type, a count, and the value or where it lies. The header is two offsets long.
FORMS = {
    b"II\x2a\x00": ("<I", "<H", "<HHI4s"),
    b"MM\x00\x2a": (">I", ">H", ">HHI4s"),
    b"II\x2b\x00": ("<Q", "<Q", "<HHQ8s"),
    b"MM\x00\x2b": (">Q", ">Q", ">HHQ8s"),
}
DESCRIPTION = 270
MOST_ENTRIES = 4096
MOST_BYTES = 1 << 24  # of OME-XML: tens of thousands of planes
MOST_PARTS = 100_000
FILE_NAME = re.compile(rb"""<(?:\w+:)?UUID\s[^<>]*?FileName\s*=\s*(?:"([^"<>]*)"|'([^'<>]*)')""")


def find_parts(path: Path) -> list[Path]:
    """The other files that a TIFF file says its image is made of, as far as they are there.

    Empty for any other file, and for one that is damaged: reading it raises an error. Raises
    OSError.
    """
    with path.open("rb") as file:
        try:
            text = _read_description(file)
        except struct.error:  # the file ends before its first directory does
            return []
    names = dict.fromkeys(match[1] or match[2] for match in FILE_NAME.finditer(text))
    parts = (path.parent / html.unescape(name.decode(errors="replace")) for name in names)
    return [part for part in islice(parts, MOST_PARTS) if part != path and _is_file(part)]


def _read_description(file: BinaryIO) -> bytes:
    """The description of the first image of a TIFF file; empty if there is none."""
    form = FORMS.get(file.read(4))
    if form is None:
        return b""
    offset_form, count_form, entry_form = form
    (first,) = _unpack(file, offset_form, struct.calcsize(offset_form))
    (entries,) = _unpack(file, count_form, first)
    for number in range(min(entries, MOST_ENTRIES)):
        at = first + struct.calcsize(count_form) + number * struct.calcsize(entry_form)
        tag, _, count, value = _unpack(file, entry_form, at)
        if tag == DESCRIPTION:
            if count <= len(value):
                return bytes(value[:count])
            (offset,) = struct.unpack(offset_form, value)
            return _read(file, offset, count)
    return b""


def _unpack(file: BinaryIO, form: str, offset: int) -> tuple[Any, ...]:
    """The values at an offset. Raises struct.error past the end of the file."""
    return struct.unpack(form, _read(file, offset, struct.calcsize(form)))


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    file.seek(min(offset, size))
    return file.read(min(count, MOST_BYTES))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
