"""What is read neither runs code nor writes outside the folders of the run.

Each payload makes a file, the canary; and each is shown to do so where it is trusted.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from conftest import REPOSITORY, Workflow, files_in, make_tiny_model, picture, snakemake
from reading import opened

from unet.config import check_file, read_config
from unet.errors import ConfigError, ModelError, SourceError
from unet.model.folder import find_model
from unet.training.config import read_training

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
PATHS = ("../evil", "..", "/tmp/evil", "a/b", "a\\b")
OUTSIDE = (*PATHS, ".", "~", "a\n", "-a", "", "a\0b", "ä", "a b")


class Payload:
    """What makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of the file ran"


# --- Pickles ----------------------------------------------------------------------------------


def pickled_npy(folder: Path, canary: Path) -> Path:
    np.save(folder / "i.npy", np.array([[Payload(canary)]]), allow_pickle=True)
    return folder / "i.npy"


def pickled_npz(folder: Path, canary: Path) -> Path:
    np.savez(folder / "i.npz", np.array([[Payload(canary)]]))
    return folder / "i.npz"


def bare_pickle_in_npz(folder: Path, canary: Path) -> Path:
    with zipfile.ZipFile(folder / "i.npz", "w") as file:
        file.writestr("a.npy", pickle.dumps(Payload(canary)))
    return folder / "i.npz"


def zarr_v2(**said: Any) -> Callable[[Path, Path], Path]:
    def write(folder: Path, canary: Path) -> Path:
        metadata = {"zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": "|u1"}
        metadata |= {"compressor": None, "filters": None, "fill_value": 0, "order": "C"} | said
        (folder / "i.zarr").mkdir()
        (folder / "i.zarr" / ".zarray").write_text(json.dumps(metadata))
        (folder / "i.zarr" / "0.0").write_bytes(pickle.dumps(Payload(canary)))
        return folder / "i.zarr"

    return write


PICKLE, TEXT = {"id": "pickle"}, {"id": "vlen-utf8"}
PICKLES = {
    "npy": pickled_npy,
    "npz": pickled_npz,
    "a pickle in an npz": bare_pickle_in_npz,
    "zarr, as the compressor": zarr_v2(compressor=PICKLE),
    "zarr, as a filter": zarr_v2(filters=[PICKLE]),
    "zarr, among filters": zarr_v2(filters=[TEXT, PICKLE], dtype="|O"),
    "zarr, of objects": zarr_v2(filters=[PICKLE], dtype="|O"),
    "zarr, after another": zarr_v2(filters=[PICKLE, {"id": "delta", "dtype": "|u1"}]),
    "zarr, as filter and compressor": zarr_v2(filters=[TEXT], compressor=PICKLE, dtype="|O"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_image_is_unpickled(name: str, tmp_path: Path, canary: Path) -> None:
    with pytest.raises(SourceError):
        opened(PICKLES[name](tmp_path, canary))


def test_these_would_run_where_they_are_trusted(tmp_path: Path) -> None:
    for number, name in enumerate(("npy", "zarr, of objects")):
        folder, made = tmp_path / str(number), tmp_path / f"made-{number}"
        folder.mkdir()
        path = PICKLES[name](folder, made)
        if path.is_dir():  # numcodecs asks for a variable since 0.16.6
            pickle.loads((path / "0.0").read_bytes())
        else:
            np.load(path, allow_pickle=True)
        assert made.exists()


# --- Codecs that a package brings -------------------------------------------------------------

READ = """
import sys
from unet.sources import open_source
from unet.sources.base import SourceSpec
open_source(SourceSpec(sys.argv[1]))
"""
READ_BY_ZARR = "import sys, zarr; zarr.open(sys.argv[1], mode='r')[...]"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("trusted", [False, True])
def test_an_image_calls_no_codec_of_another_package(
    version: int, trusted: bool, tmp_path: Path
) -> None:
    package, canary = tmp_path / "package", tmp_path / "canary"
    (package / "evil-1.dist-info").mkdir(parents=True)
    (package / "evil-1.dist-info" / "METADATA").write_text("Name: evil\nVersion: 1\n")
    (package / "evil-1.dist-info" / "entry_points.txt").write_text(
        "[zarr.codecs]\nevil = evil:Evil\n[numcodecs.codecs]\nevil = evil:Evil\n"
    )
    (package / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    image = tmp_path / "i.zarr"
    if version == 2:
        zarr_v2(compressor={"id": "evil"})(tmp_path, canary)
    else:
        zarr.create_array(image, shape=(8, 8), dtype="u1", compressors=None)
        metadata = json.loads((image / "zarr.json").read_text())
        metadata["codecs"] = [{"name": "bytes"}, {"name": "evil", "configuration": {}}]
        (image / "zarr.json").write_text(json.dumps(metadata))
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_ZARR if trusted else READ, str(image)],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert canary.exists() == trusted
    assert trusted or "it names the codec evil" in done.stderr


# --- Names that lead elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_of_the_configuration_leads_out_of_the_results(
    name: str, small_image: Path
) -> None:
    config = {"images": [{"name": name, "path": str(small_image), "model": "fluo-nuclei"}]}
    with pytest.raises(ConfigError, match="name"):
        read_config(config, SCHEMA)
    labelled = {"image": str(small_image), "label": str(small_image)}
    with pytest.raises(ConfigError, match="name"):
        read_training({"name": name, "classes": ["a", "b"], "images": [labelled]})


@pytest.mark.parametrize("name", [f"{path}.safetensors" for path in PATHS])
def test_weights_lie_in_the_folder_of_their_model(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model").folder
    described = yaml.safe_load((folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump(described | {"weights": {"file": name}}))
    with pytest.raises(ModelError, match="weights"):
        find_model(folder)


@pytest.mark.slow
def test_names_in_files_make_no_files(run_workflow: Workflow, tmp_path: Path) -> None:
    """Of channels, classes and the model: a run writes nothing beside its own folders."""
    evil = "../../../evil"
    model = make_tiny_model(tmp_path / "model", name=evil, in_channels=2)
    described = yaml.safe_load((model.folder / "model.yaml").read_text())
    described |= {"classes": [evil, f"{evil}/2"], "channels": [evil, "/tmp/evil"]}
    (model.folder / "model.yaml").write_text(yaml.safe_dump(described))
    tifffile.imwrite(
        tmp_path / "i.ome.tif",
        picture(2, 60, 70),
        photometric="minisblack",
        metadata={"axes": "CYX", "Name": evil, "Channel": {"Name": [evil, "/tmp/evil"]}},
    )
    weights = tmp_path / "weights"  # where a link leads
    model.weights.rename(weights)
    model.weights.symlink_to(weights)
    before = files_in(tmp_path)
    image = {"name": "image", "path": str(tmp_path / "i.ome.tif"), "model": str(model.folder)}
    done = run_workflow({"images": [image]}, tmp_path / "a" / "b" / "c" / "run")
    assert done.returncode == 0, done.stderr
    after = files_in(tmp_path)
    assert before.items() <= after.items(), "what was there is as it was"
    made = after.keys() - before.keys()
    assert made
    assert all(name.startswith("a/b/c/run/") for name in made)
    assert not any("evil" in name for name in made)


# --- YAML -------------------------------------------------------------------------------------

TEMPLATE = "__use_yte__: true\nimages: \"?__import__('os').mkdir('{}')\"\n"
HIDDEN = (
    TEMPLATE,
    "\"\\x5f_use_yte__\": true\nimages: \"?__import__('os').mkdir('{}')\"\n",
    "<<: {{__use_yte__: true}}\nimages: \"?__import__('os').mkdir('{}')\"\n",
    "__use_yte__: true\n__definitions__:\n  - __import__('os').mkdir('{}')\nimages: []\n",
    "\ufeff__use_yte__: 1\n\"?__import__('os').mkdir('{}')\": []\n",
)


@pytest.mark.parametrize("text", HIDDEN)
def test_a_configuration_is_no_template(text: str, tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.format(canary), encoding="utf-8")
    with pytest.raises(ConfigError, match="__use_yte__"):
        check_file(file)


@pytest.mark.parametrize("text", [HIDDEN[0], '!!python/object/apply:os.mkdir ["{}"]'])
def test_snakemake_does_not_run_the_configuration(text: str, tmp_path: Path, canary: Path) -> None:
    """The real one, which reads it before this project does anything."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(text.format(canary))
    told = snakemake("--directory", str(tmp_path), "--cores", "1", cache=tmp_path)
    assert told.returncode != 0
    assert "The configuration is wrong. Expected" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_template_would_run_where_it_is_trusted(tmp_path: Path) -> None:
    from yte import process_yaml

    for number, text in enumerate(HIDDEN):
        made = tmp_path / f"made-{number}"
        process_yaml(io.StringIO(text.format(made)), require_use_yte=True)
        assert made.exists()
