"""Files that are a little wrong: small good ones, changed in some bytes or in some fields.

`FUZZED` has the kinds of input by name: files as bytes, how they are changed, and how they are then
read. A change is drawn by hypothesis, so that a failing one becomes small.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
import yaml
import zarr
from conftest import REPOSITORY, files_in, make_tiny_model, picture
from hostile import read_image
from hypothesis import strategies as st
from reading import write_ome_zarr

from unet.config import check_file, read_config
from unet.errors import UserError
from unet.model.folder import find_model
from unet.network.weights import load_network
from unet.training.config import read_training
from unet.yaml_file import read_yaml

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
Files = dict[str, bytes]
Draw = Callable[[st.SearchStrategy[Any]], Any]

INTEGERS = st.sampled_from(
    [
        *(0, 1, 2, 3, 7, 8, 16, 255, 256, -1, 2**15, 2**16 - 1, 2**16, 10**7, 2**24, 10**9),
        *(2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**36, -(2**31), -(2**63)),
    ]
)
VALUES = st.one_of(
    INTEGERS,
    st.sampled_from([None, True, False, "", "a", "yx", "0", "NaN", "é\u0000", "a" * 1000, "../a"]),
    st.sampled_from([0.5, -1.0, 1e308, float("nan"), float("inf"), 1e-320]),
    st.sampled_from([[], {}, [[]], [0], [1, "a"], {"a": 1}, [None], [{}], [-1, -1], [1e9, 8]]),
    st.recursive(st.integers(-3, 300) | st.text(max_size=3), st.lists, max_leaves=6),
)


@dataclass(frozen=True)
class Fuzzed:
    """A kind of input: good files, how they are changed, and what is done with them."""

    files: Callable[[], Files]
    change: Callable[[Draw, Files], Files]
    read: Callable[[Path], object]


# --- Changes ----------------------------------------------------------------------------------


@st.composite
def edits(draw: Draw, content: bytes) -> bytes:
    """A content with a few bytes that are other, gone, twice or new."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "number", "cut", "drop", "insert", "twice"]))
        if kind == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            form = draw(st.sampled_from(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, draw(INTEGERS) % (1 << 8 * size))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


def change_bytes(draw: Draw, files: Files) -> Files:
    """Some bytes of one of the files."""
    name = draw(st.sampled_from(sorted(files)))
    return files | {name: draw(edits(files[name]))}


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a value."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [here, *(place for key, part in inside for place in places(part, (*here, key)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place; without it, where the new value is DROPPED."""
    if not place:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[place[0]] = replaced(value[place[0]], place[1:], new)
    if copied[place[0]] is DROPPED:
        del copied[place[0]]
    return copied


DROPPED = object()


def change_value(draw: Draw, value: Any) -> Any:
    """Some of the values in a value are others, are gone, or have a neighbour."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(value)))
        kind = draw(st.sampled_from(["other", "other", "drop", "more"]))
        if kind == "drop" and place:
            value = replaced(value, place, DROPPED)
        elif kind == "more":
            found = value
            for key in place:
                found = found[key]
            new = draw(VALUES)
            if isinstance(found, dict):
                value = replaced(value, place, {**found, draw(st.sampled_from(["a", "id"])): new})
            elif isinstance(found, list):
                value = replaced(value, place, [*found, new])
        else:
            value = replaced(value, place, draw(VALUES))
    return value


def change_json(*names: str) -> Callable[[Draw, Files], Files]:
    """Fields of one of the JSON files whose names end so."""

    def change(draw: Draw, files: Files) -> Files:
        name = draw(st.sampled_from(sorted(n for n in files if n.endswith(names))))
        return files | {name: json.dumps(change_value(draw, json.loads(files[name]))).encode()}

    return change


def change_yaml(draw: Draw, files: Files) -> Files:
    """Fields of the YAML files."""
    name = draw(st.sampled_from(sorted(n for n in files if n.endswith(".yaml"))))
    said = change_value(draw, yaml.safe_load(files[name]))
    return files | {name: yaml.safe_dump(said).encode()}


def change_weights(draw: Draw, files: Files) -> Files:
    """Some bytes of the weights."""
    name = next(name for name in files if not name.endswith(".yaml"))
    return files | {name: draw(edits(files[name]))}


def change_tags(draw: Draw, files: Files) -> Files:
    """Type, count, value or code of some tags of a TIFF."""
    ((name, content),) = files.items()
    data = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offsets = [tag.offset for page in file.pages for tag in page.tags]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(offsets))
        start, form = draw(st.sampled_from([(0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<H")]))
        size = struct.calcsize(form)
        data[at + start : at + start + size] = struct.pack(form, draw(INTEGERS) % (1 << 8 * size))
    return {name: bytes(data)}


def change_chunks(draw: Draw, files: Files) -> Files:
    """A field of a chunk of a PNG, whose checksums are right again."""
    ((name, content),) = files.items()
    parts, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        parts.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    part = draw(st.sampled_from(parts))
    part[1] = draw(edits(part[1]))
    written = [
        struct.pack(">I", len(inside))
        + kind
        + inside
        + struct.pack(">I", zlib.crc32(kind + inside))
        for kind, inside in parts
    ]
    return {name: content[:8] + b"".join(written)}


def change_npy(draw: Draw, files: Files) -> Files:
    """A field of the header of an .npy file."""
    ((name, content),) = files.items()
    header = {"descr": "|u1", "fortran_order": False, "shape": (8, 9)}
    key = draw(st.sampled_from(sorted(header)))
    value = draw(VALUES)
    header[key] = tuple(value) if isinstance(value, list) else value
    if key == "descr":
        header[key] = draw(
            st.sampled_from(["<f8", ">u2", "|O", "<U9", "|V99", "<M8[s]", "?", 3, "q"])
        )
    text = repr(header).encode(errors="replace") + b"\n"
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text))
    return {name: start + text + content[-72:]}


# --- Good files -------------------------------------------------------------------------------


def written(write: Callable[[Path], object]) -> Callable[[], Files]:
    """The files that a function writes into a folder; it is called once."""

    @cache
    def files() -> Files:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            return files_in(Path(folder))

    return files


def tiff(
    shape: tuple[int, ...] = (24, 20), name: str = "i.tif", **options: Any
) -> Callable[[], Files]:
    image = picture(*shape) if shape[-1] != 3 else np.zeros(shape, "u1")
    options = {"photometric": "minisblack"} | options
    return written(lambda folder: tifffile.imwrite(folder / name, image, **options))


def array(version: int, **options: Any) -> Callable[[], Files]:
    return written(
        lambda folder: zarr.create_array(
            folder / "i.zarr", data=picture(24, 20), zarr_format=version, chunks=(8, 8), **options
        )
    )


def ome(version: int) -> Callable[[], Files]:
    levels = [picture(2, 24, 20), picture(2, 12, 10)]
    return written(lambda folder: write_ome_zarr(folder / "i.zarr", version, levels, "cyx"))


def model(folder: Path) -> None:
    make_tiny_model(folder / "m")


def model_without_sum(folder: Path) -> None:
    """Whose weights are read whatever is in them."""
    make_tiny_model(folder / "m")
    said = yaml.safe_load((folder / "m" / "model.yaml").read_text())
    (folder / "m" / "model.yaml").write_text(yaml.safe_dump(said | {"weights": WEIGHTS}))


def model_of_torch(folder: Path, zipped: bool = True) -> None:
    spec = make_tiny_model(folder / "m")
    tensors = load_network(spec).state_dict()
    torch.save(tensors, folder / "m" / "w.pt", _use_new_zipfile_serialization=zipped)
    spec.weights.unlink()
    said = yaml.safe_load((folder / "m" / "model.yaml").read_text())
    (folder / "m" / "model.yaml").write_text(yaml.safe_dump(said | {"weights": {"file": "w.pt"}}))


WEIGHTS = {"file": "weights.safetensors"}


def old_model_of_torch(folder: Path) -> None:
    model_of_torch(folder, zipped=False)


def config(folder: Path) -> None:
    tifffile.imwrite(folder / "i.tif", picture(8, 8))
    image = {"name": "a", "path": str(REPOSITORY / "README.md"), "model": "fluo-nuclei"}
    image |= {"axes": "yx", "channels": [0], "pixel_size": {"y": 1.0}, "level": 0}
    said = {
        "images": [image],
        "stores": "stores",
        "split": {"memory": 4, "shard": [64, 64], "chunk": [64, 64], "core": [64, 64]},
        "predict": {"device": "auto", "precision": "float32", "block_minutes": 3},
        "stitch": {"threshold": 0.5, "image": True},
        "verify": {"blocks": 3, "seed": 1},
        "evaluate": [{"name": "a", "label": image["path"], "values": [0, 1], "measures": []}],
        "train": yaml.safe_load((REPOSITORY / "config" / "train.yaml").read_text())["train"],
    }
    labelled = {"image": image["path"], "label": image["path"]}
    said["train"] = {**said["train"], "images": [labelled], "start": "fluo-nuclei"}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))


# --- Reading them -----------------------------------------------------------------------------


def read_file(folder: Path) -> None:
    (file,) = folder.iterdir()
    read_image(file)


def read_zarr(folder: Path) -> None:
    read_image(folder / "i.zarr")


def read_model(folder: Path) -> None:
    load_network(find_model(folder / "m"))


def read_configuration(folder: Path) -> None:
    check_file(folder / "config.yaml")
    said = read_yaml(folder / "config.yaml")
    read_config(said, SCHEMA)
    if said.get("train"):
        read_training(said["train"])


TIFFS = {
    "plain": tiff(),
    "zlib": tiff(compression="zlib", rowsperstrip=8),
    "lzw": tiff(compression="lzw", predictor=True),
    "zstd": tiff(compression="zstd"),
    "jpeg": tiff((24, 20, 3), photometric="rgb", compression="jpeg", tile=(16, 16)),
    "packbits": tiff(compression="packbits"),
    "tiles": tiff(tile=(16, 16)),
    "stack": tiff((3, 24, 20), metadata={"axes": "ZYX"}),
    "pages": tiff((3, 24, 20), metadata=None),
    "imagej": tiff((3, 24, 20), imagej=True, metadata={"axes": "ZYX", "unit": "um"}),
    "big": tiff(bigtiff=True),
    "ome": tiff((2, 3, 24, 20), "i.ome.tif", metadata={"axes": "CZYX"}, compression="zlib"),
}
ZARRS = {
    "v2": array(2),
    "v2 plain": array(2, compressors=None),
    "v3": array(3),
    "v3 gzip": array(3, compressors=[zarr.codecs.GzipCodec()]),
    "v3 blosc": array(3, compressors=[zarr.codecs.BloscCodec()]),
    "v3 plain": array(3, compressors=None),
    "v3 shards": array(3, shards=(16, 16)),
    "ome v2": ome(2),
    "ome v3": ome(3),
}
JSON = change_json(".zarray", ".zattrs", ".zgroup", "zarr.json")
RASTERS = {
    "png": (lambda: {"i": imagecodecs.png_encode(picture(24, 20))}, change_chunks),
    "png rgb": (lambda: {"i": imagecodecs.png_encode(np.zeros((8, 9, 3), "u2"))}, change_chunks),
    "jpeg": (lambda: {"i": imagecodecs.jpeg_encode(picture(24, 20))}, change_bytes),
}


def saved(save: Callable[..., object]) -> Callable[[], Files]:
    def files() -> Files:
        content = io.BytesIO()
        save(content, np.arange(72, dtype="u1").reshape(8, 9))
        return {"i": content.getvalue()}

    return files


def kinds() -> Iterator[tuple[str, Fuzzed]]:
    """Every kind of input by its name."""
    for name, files in TIFFS.items():
        yield f"tiff {name}, bytes", Fuzzed(files, change_bytes, read_file)
        yield f"tiff {name}, tags", Fuzzed(files, change_tags, read_file)
    for name, files in ZARRS.items():
        yield f"zarr {name}, bytes", Fuzzed(files, change_bytes, read_zarr)
        yield f"zarr {name}, fields", Fuzzed(files, JSON, read_zarr)
    for name, (files, change) in RASTERS.items():
        yield f"{name}, bytes", Fuzzed(files, change_bytes, read_file)
        yield f"{name}, fields", Fuzzed(files, change, read_file)
    yield "npy, bytes", Fuzzed(saved(np.save), change_bytes, read_file)
    yield "npy, fields", Fuzzed(saved(np.save), change_npy, read_file)
    yield "npz, bytes", Fuzzed(saved(np.savez_compressed), change_bytes, read_file)
    yield "model, fields", Fuzzed(written(model), change_yaml, read_model)
    yield "model, bytes", Fuzzed(written(model), change_bytes, read_model)
    yield "safetensors", Fuzzed(written(model_without_sum), change_weights, read_model)
    yield "pt", Fuzzed(written(model_of_torch), change_weights, read_model)
    yield "old pt", Fuzzed(written(old_model_of_torch), change_weights, read_model)
    yield "configuration, fields", Fuzzed(written(config), change_yaml, read_configuration)
    yield "configuration, bytes", Fuzzed(written(config), change_bytes, read_configuration)


FUZZED = dict(kinds())


def read_or_refuse(kind: str, files: Files) -> None:
    """Read the files, or see them end in an own error; whatever else is raised is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with suppress(UserError):
            FUZZED[kind].read(Path(folder))
