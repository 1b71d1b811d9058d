"""The configuration: a closed schema, its defaults, its table of keys; the lists of packages."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement

from unet.config import GIGABYTE, read_config
from unet.errors import ConfigError
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources.base import SourceSpec
from unet.training.config import SCHEMA as TRAIN_SCHEMA
from unet.training.config import read_training

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
README = REPOSITORY / "config" / "README.md"
TRAINING = REPOSITORY / "config" / "TRAINING.md"
CONFIGURATIONS = [
    *(REPOSITORY / "config" / "models").glob("*.yaml"),
    REPOSITORY / "config" / "train.yaml",
]
SMALLEST = {"images": [{"name": "a", "path": "a.tif", "model": "fluo-nuclei"}]}
RULE_OUTPUTS = ["a.tif"]


def schema(file: Path = SCHEMA) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def keys(of: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every key of the schema: its path, its own schema, and whether it has to be there."""
    for key, value in of.get("properties", {}).items():
        path = f"{name}.{key}".removeprefix(".")
        yield path, value, key in of.get("required", ())
        yield from keys(value, path)
        yield from keys(value.get("items", {}), f"{path}[]")


def objects(of: Any) -> Iterator[dict[str, Any]]:
    if isinstance(of, dict):
        if "properties" in of:
            yield of
        for value in of.values():
            yield from objects(value)


def test_a_model_of_many_images_is_looked_at_once(monkeypatch):
    """So that a hundred images take no longer to read than one."""
    looked = []
    monkeypatch.setattr("unet.config.find_model", looked.append)
    images = [
        {"name": f"i{number}", "path": "a.tif", "model": model}
        for number, model in enumerate(["one", "two"] * 50)
    ]
    assert len(read_config({"images": images}, SCHEMA, RULE_OUTPUTS).images) == 100
    assert looked == ["one", "two"]


@pytest.mark.parametrize(("file", "count"), [(SCHEMA, 8), (TRAIN_SCHEMA, 8)])
def test_the_schema_is_closed(file, count):
    assert len(list(objects(schema(file)))) == count
    assert all(each["additionalProperties"] is False for each in objects(schema(file)))


@pytest.mark.parametrize("file", [SCHEMA, TRAIN_SCHEMA])
def test_every_key_is_described_and_has_a_default_or_is_required(file):
    for name, said, required in keys(schema(file)):
        if name.rpartition(".")[2] not in ("z", "y", "x"):
            assert said["description"].endswith("."), name
            assert required != ("default" in said), name


def test_defaults_are_filled_in():
    config = read_config(SMALLEST, SCHEMA, rule_outputs=RULE_OUTPUTS)
    assert config.images["a"].source == SourceSpec("a.tif")
    assert config.split == SplitOptions(memory=8 * GIGABYTE)
    assert (config.device, config.scheduler) == ("auto", None)
    assert config.stitch == StitchOptions(threshold=0.5, image=True)
    assert (config.block_seconds, config.verify) == (None, {"blocks": 16, "seed": 0})


def test_what_is_said_goes_before_the_defaults():
    image = {"axes": "zyx", "level": 2, "channels": [1, "DAPI"], "pixel_size": {"x": 0.5}}
    raw = {
        "images": [{**SMALLEST["images"][0], **image}],
        "split": {"memory": 0.5, "shard": [64, 64], "core": [4, 32, 32]},
        "predict": {
            "device": "cpu",
            "precision": "bfloat16",
            "block_minutes": 2,
            "tolerance": 0.5,
        },
        "stitch": {"threshold": 0.3, "image": False},
        "verify": {"blocks": 3},
    }
    before = json.dumps(raw)
    config = read_config(raw, SCHEMA, rule_outputs=RULE_OUTPUTS)
    assert config.images["a"].source == SourceSpec(
        "a.tif", axes="zyx", level=2, channels=(1, "DAPI"), pixel_size={"x": 0.5}
    )
    wanted = SplitOptions(5 * 10**8, "bfloat16", shard=(64, 64), core=(4, 32, 32), tolerance=0.5)
    assert config.split == wanted
    assert (config.device, config.stitch) == ("cpu", StitchOptions(0.3, image=False))
    assert (config.block_seconds, config.verify) == (120, {"blocks": 3, "seed": 0})
    assert json.dumps(raw) == before, "the configuration was changed by reading it"


@pytest.mark.parametrize("written", ["~/{}.npy", "file://{home}/{}.npy"])
def test_every_path_of_an_image_is_resolved_in_one_way(tmp_path, monkeypatch, written):
    """So that Snakemake, which knows neither `~` nor file://, is given the files themselves."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [written.format(name, home=tmp_path) for name in ("image", "label", "mask")]
    plain = [str(tmp_path / f"{name}.npy") for name in ("image", "label", "mask")]
    for path in plain:
        Path(path).touch()
    labels = {"label": paths[1], "annotated": paths[2]}
    raw = {
        "images": [{"name": "a", "path": paths[0], "model": "fluo-nuclei"}],
        "evaluate": [{"name": "a", **labels}],
    }
    config = read_config(raw, SCHEMA)
    said = config.evaluate[0]
    found = [config.images["a"].source.path, said.label.path, said.annotated.path]
    assert found == plain
    train = {"name": "m", "classes": ["b", "n"], "images": [{"image": paths[0], **labels}]}
    assert read_training(train).paths == plain


KEYS = [name for name, _, required in keys(schema()) if not required]


@pytest.mark.parametrize("name", KEYS)
def test_a_typo_of_any_key_is_named_with_the_key_that_was_meant(name):
    *parents, key = name.replace("[]", ".[]").split(".")
    typo = f"{key}s"
    raw: Any = json.loads(json.dumps(SMALLEST))
    at = raw
    for parent, inner in zip(parents, [*parents, key][1:], strict=True):
        at = at[0] if parent == "[]" else at.setdefault(parent, [{}] if inner == "[]" else {})
    at[typo] = None
    with pytest.raises(ConfigError, match=rf"unknown key '{typo}'; did you mean '{key}'\?"):
        read_config(raw, SCHEMA, rule_outputs=RULE_OUTPUTS)


def test_the_default_configuration_is_valid():
    raw = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text(encoding="utf-8"))
    config = read_config(raw, SCHEMA, rule_outputs=[image["path"] for image in raw["images"]])
    assert list(config.images) == ["slide", "stack"]


# --- config/README.md ---------------------------------------------------------------------------


def type_of(said: dict[str, Any]) -> str:
    if "enum" in said:
        return " or ".join(map(str, said["enum"]))
    kinds = [said["type"]] if isinstance(said["type"], str) else said["type"]
    kind = next(kind for kind in kinds if kind != "null")
    if kind == "array":
        inner = said["items"]["type"]
        inner = [inner] if isinstance(inner, str) else inner
        return "list of " + " or ".join(f"{each}s" for each in inner).replace("object", "section")
    return {"object": "section"}.get(kind, kind)


def default_of(said: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = said.get("default")
    return "-" if value in (None, {}, [], "") else json.dumps(value).strip('"')


def expected_rows(file: Path) -> list[list[str]]:
    """What the table has to say of each key: all columns but the unit."""
    return [
        [f"`{name}`", type_of(said), default_of(said, required), said.get("description", "")]
        for name, said, required in keys(schema(file))
    ]


@pytest.mark.parametrize(("page", "file"), [(README, SCHEMA), (TRAINING, TRAIN_SCHEMA)])
def test_the_table_of_keys_is_the_schema(page, file):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    expected = expected_rows(file)
    for row, wanted in zip(rows, expected, strict=True):
        name, kind, unit, default, description = row
        assert [name, kind, default] == wanted[:3]
        assert description == wanted[3] or not wanted[3]
        assert description
        assert unit == "-" or unit.rstrip("s") in description


def test_the_example_is_valid():
    examples = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert examples
    for example in examples:
        raw = yaml.safe_load(example)
        read_config(raw, SCHEMA, rule_outputs=[image["path"] for image in raw["images"]])


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_training_that_comes_along_is_valid(file):
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))["train"]
    paths = [i[k] for i in raw["images"] for k in ("image", "label", "annotated") if i.get(k)]
    training = read_training(raw, rule_outputs=paths)
    assert training.paths == paths
    assert file.stem in (training.name, "train")


# --- Packages -----------------------------------------------------------------------------------

CONDA = {"torch": "pytorch", "dask": "dask-core", "snakemake": "snakemake-minimal"}


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pins}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_three_lists_of_packages_agree():
    """pyproject.toml says the ranges, environment.yml the same to conda; constraints.txt fits."""
    wanted = [Requirement(each) for each in project()["dependencies"]]
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    of_conda = {each.name: each.specifier for each in map(Requirement, environment["dependencies"])}
    expected = {CONDA.get(each.name, each.name): each.specifier for each in wanted}
    python = Requirement(f"python {project()['requires-python']}")
    assert of_conda == {"python": python.specifier, **expected}
    pins = pinned()
    extras = [each for group in project()["optional-dependencies"].values() for each in group]
    for each in wanted + list(map(Requirement, extras)):
        assert each.specifier.contains(pins[normal(each.name)]), each.name
    assert pins["torch"] == "2.13.0"


def test_a_package_is_pinned_once():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(pinned()) == sum(1 for line in lines if line and not line.startswith("#"))
