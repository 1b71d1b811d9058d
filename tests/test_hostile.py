"""A file that was made to hurt ends in a sentence, within 5 s and 1 GB."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, make_tiny_model, snakemake
from hostile import assert_refused

from unet.config import check_file, read_config
from unet.model.folder import find_model
from unet.network.weights import load_network
from unet.yaml_file import read_yaml

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"

# --- Model folders ----------------------------------------------------------------------------


def load_model(folder: Path) -> None:
    load_network(find_model(folder))


NETWORKS = {
    "wide": {"width": 10**9},
    "wider": {"width": 10**30},
    "wide enough": {"width": 40000},
    "deep": {"depth": 10**9},
    "deep enough": {"depth": 16},
    "many channels": {"in_channels": 10**9},
    "large kernel": {"kernel": 10**9 + 1},
    "largest kernel": {"kernel": 1023},
    "large pool": {"pool": 10**9},
    "largest pools": {"pool": 1024, "depth": 16},
    "many rows": {"kernel": [[3, 3]] * 100_000},
}
NORMALISATIONS = {
    "NaN": {"method": "range", "low": float("nan"), "high": 1},
    "infinity": {"method": "range", "low": 0, "high": float("inf")},
    "backwards": {"method": "range", "low": 1, "high": 0},
    "nothing between": {"method": "range", "low": 1, "high": 1},
    "more than numbers have": {"method": "range", "low": -1.7e308, "high": 1.7e308},
    "percentile above 100": {"method": "percentile", "low": 1, "high": 200},
    "percentile below 0": {"method": "percentile", "low": -1, "high": 99},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_the_weights_cannot_be_of(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model").folder
    change(folder / "model.yaml", network=NETWORKS[name])
    assert_refused(load_model, folder)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_without_numbers(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model").folder
    change(folder / "model.yaml", normalisation=NORMALISATIONS[name])
    assert "normalisation" in assert_refused(load_model, folder)


def change(file: Path, **changes: Any) -> None:
    said = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**said, **changes}))


def sparse(model: Path) -> None:
    """A file of a terabyte that takes no room on the disk."""
    with (model / "weights.safetensors").open("r+b") as file:
        file.truncate(10**12)


def huge_header(model: Path) -> None:
    content = (model / "weights.safetensors").read_bytes()
    (model / "weights.safetensors").write_bytes((10**15).to_bytes(8, "little") + content[8:])


def expanded(model: Path) -> None:
    """One number, said to be the weights of a whole layer many times over."""
    tensors = load_network(find_model(model)).state_dict()
    tensors["head.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(tensors, model / "weights.pt")
    change(model / "model.yaml", weights={"file": "weights.pt"})


def meta(model: Path) -> None:
    tensors = load_network(find_model(model)).state_dict()
    shape = tensors["head.weight"].shape
    torch.save({**tensors, "head.weight": torch.empty(shape, device="meta")}, model / "weights.pt")
    change(model / "model.yaml", weights={"file": "weights.pt"})


class Zeros:
    """What is as many zero bytes when it is unpickled, which torch allows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**10,)


def pickled_zeros(model: Path, zipped: bool = True) -> None:
    torch.save(
        {"head.weight": Zeros()}, model / "weights.pt", _use_new_zipfile_serialization=zipped
    )
    change(model / "model.yaml", weights={"file": "weights.pt"})


def pickled_zeros_of_old(model: Path) -> None:
    pickled_zeros(model, zipped=False)


def compressed(model: Path) -> None:
    """A kilobyte that unpacks to a gigabyte."""
    meta(model)
    with (
        zipfile.ZipFile(model / "weights.pt") as whole,
        zipfile.ZipFile(model / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in set(whole.namelist()) - {"weights/data/0"}:
            packed.writestr(name, whole.read(name))
        with packed.open("weights/data/0", "w", force_zip64=True) as into:
            for _ in range(200):
                into.write(bytes(10**7))
    change(model / "model.yaml", weights={"file": "packed.pt"})


LARGE = [sparse, huge_header, expanded, meta, pickled_zeros, pickled_zeros_of_old, compressed]


@pytest.mark.parametrize("write", LARGE)
def test_weights_that_are_larger_than_they_may_be(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "model").folder
    change(folder / "model.yaml", weights={"file": "weights.safetensors"})
    write(folder)
    assert_refused(load_model, folder)


# --- YAML -------------------------------------------------------------------------------------


def bomb(most: int, opening: str, closing: str) -> str:
    """A few lines that name the line before ten times each."""
    lines = [f"a0: &a0 {opening}1{closing}"]
    for level in range(1, most):
        parts = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{parts}]")
    return "\n".join(lines)


YAML = {
    "ten million characters": "a: " + "b" * 10**7,
    "ten million numbers": "a: [" + "1, " * (10**7 // 3) + "]",
    "a long value": "a: " + "b" * 10**6,
    "a long key": "b" * 10**6 + ": 1",
    "aliases": bomb(30, "[", "]"),
    "aliases of mappings": "a0: &a0 {b: 1}\n"
    + "\n".join(f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}}}" for n in range(1, 40)),
    "itself": "a: &a [*a]",
    "a mapping of itself": "a: &a {b: *a}",
    "itself as its key": "&a {*a : 1}",
    "brackets": "a: " + "[" * 10**5,
    "braces": "{a: " * 10**5,
    "dashes": "- " * 10**5,
    "steps": "\n".join(" " * n + "a:" for n in range(1500)),
    "a number of a million digits": "a: " + "9" * 10**6,
    "a number of many digits": "a: " + "9" * 5000,
    "a hexadecimal number": "a: 0x" + "f" * 50_000,
    "a number of minutes": "a: 1" + ":1" * 10**5,
    "no text": "\udcff",
    "a 30th of February": "a: 2020-02-30",
    "a key that is no key": "? [1, 2]\n: 3",
    "a wrong tag": "a: !!int b",
    "a tag of code": "!!python/object/apply:os.system [ls]",
    "a merge of nothing": "<<: 1",
    "nothing": "",
    "a number": "1",
    "a list": "[1]",
    "a date": "2020-02-20",
    "keys of all kinds": "{1: 2, null: 3, 2020-02-20: 4, 1.5: 5, true: 6}",
}


def as_model(file: Path) -> None:
    find_model(file.parent)


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_stops_programs_as_a_model(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(YAML[name], encoding="utf-8", errors="surrogateescape")
    assert_refused(as_model, file)


def as_config(file: Path) -> None:
    check_file(file)
    read_config(read_yaml(file), SCHEMA)


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_stops_programs_as_a_configuration(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(YAML[name], encoding="utf-8", errors="surrogateescape")
    assert_refused(as_config, file)


@pytest.mark.parametrize("name", ["ten million characters", "aliases of mappings", "brackets"])
def test_snakemake_does_not_read_such_a_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(YAML[name])
    told = snakemake("--directory", str(tmp_path), "--cores", "1", cache=tmp_path)
    assert told.returncode != 0
    assert "The configuration is wrong. Expected YAML or JSON in" in told.stderr
    assert "Traceback" not in told.stderr
