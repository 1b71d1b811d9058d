"""A model folder: what is saved comes back, and nothing that is damaged or executes is loaded."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_tiny_model

from unet.errors import ModelError
from unet.model.architecture import Architecture
from unet.model.folder import SHIPPED, find_model
from unet.model.normalisation import Normalisation
from unet.network.unet import UNet
from unet.network.weights import load_network, save_model

NETWORKS = {
    "2D": {"in_channels": 3, "classes": 4, "width": 3, "depth": 2},
    "3D": {"width": 2, "depth": 1, "dims": 3},
    "flat levels": {"dims": 3, "depth": 2, "kernel": [(1, 3, 3), (3, 3, 3), (3, 3, 3)]}
    | {"width": 2, "pool": [(1, 2, 2), (2, 2, 2)]},
    "kernel of 5": {"width": 2, "depth": 1, "kernel": 5},
}
SHIPPED_MODELS = sorted(path.parent.name for path in SHIPPED.glob("*/model.yaml"))
DRAWN = ("curves.csv", "curves.svg", "validation.png")
MOST_BYTES = 16_000_000


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_comes_back(name, tmp_path):
    network = UNet(Architecture.of(**NETWORKS[name]))
    a = network.architecture
    classes = [f"class {number}" for number in range(a.classes)]
    said = {
        "name": "mine",
        "classes": classes,
        "normalisation": {"method": "percentile", "low": 1.0, "high": 99.8},
        "pixel_size": 0.5,
        "metrics": {"dice": 0.9},
    }
    saved = save_model(tmp_path / "mine", network, said)
    assert saved == find_model(tmp_path / "mine") == find_model(str(tmp_path / "mine"))
    assert (saved.architecture, saved.classes) == (a, tuple(classes))
    assert saved.channels == tuple(map(str, range(a.in_channels)))
    assert saved.normalisation == Normalisation("percentile", 1.0, 99.8)
    assert (saved.name, saved.pixel_size) == ("mine", 0.5)
    loaded = load_network(saved)
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_it_predicts_as_the_network_that_was_saved(tmp_path):
    network = UNet(Architecture.of(width=2, depth=1)).eval()
    said = {"name": "a", "classes": ["b", "n"], "normalisation": {"method": "zscore"}}
    loaded = load_network(save_model(tmp_path, network, said))
    image = torch.randn((1, 1, 40, 40))
    with torch.inference_mode():
        assert torch.equal(loaded(image), network(image))


def test_equal_models_have_equal_fingerprints_and_others_do_not(tmp_path):
    first = make_tiny_model(tmp_path / "a", seed=1)
    assert make_tiny_model(tmp_path / "b", seed=1, name="b").fingerprint == first.fingerprint
    others = [
        make_tiny_model(tmp_path / "c", seed=2),
        make_tiny_model(tmp_path / "d", seed=1, normalisation={"method": "range"} | LIMITS),
        replace(first, architecture=Architecture.of(width=2, depth=1, kernel=5)),
    ]
    assert len({model.fingerprint for model in [first, *others]}) == 4


LIMITS = {"low": 0, "high": 255}


def test_a_plain_state_dict_may_stand_in(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    network = load_network(model)
    model.weights.unlink()
    torch.save(network.state_dict(), model.folder / "weights.pt")
    rewrite(model.folder, weights={"file": "weights.pt"})
    found = find_model(model.folder)
    assert found.weights_sha256 == hashlib.sha256(found.weights.read_bytes()).hexdigest()
    for key, tensor in load_network(found).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key])


# --- Damaged, and hostile ---------------------------------------------------------------------


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def state_dict(model):
    return load_network(model).state_dict()


def executable(model):
    return {**state_dict(model), "payload": Payload(model.folder / "executed")}


def plain_pickle(model):
    return pickle.dumps(Payload(model.folder / "executed"), protocol=2)  # as torch itself writes


def cut(model):
    torch.save(state_dict(model), model.folder / "weights.pt")
    content = (model.folder / "weights.pt").read_bytes()
    return content[: len(content) // 2]


def without_one(model):
    return {name: t for name, t in state_dict(model).items() if name != "head.bias"}


def with_nan(model):
    return {**state_dict(model), "head.bias": torch.tensor([0.0, torch.nan])}


PT = {
    "code": (executable, "a pickle that holds code or objects, which is never executed"),
    "plain pickle": (plain_pickle, "never executed|does not read as .pt"),
    "truncated": (cut, r"does not read as \.pt: .* truncated"),
    "empty": (lambda _: b"", r"does not read as \.pt"),
    "text": (lambda _: b"weights", r"Expected (a plain state dict|weights) in"),
    "whole network": (load_network, "holds code or objects.*Save it with torch.save"),
    "checkpoint": (lambda m: {"model": state_dict(m), "epoch": 3}, "plain state dict .* got dict"),
    "list": (lambda m: list(state_dict(m).values()), "plain state dict .* got list"),
    "missing": (without_one, "head.bias is missing"),
    "left over": (lambda m: {**state_dict(m), "x": torch.zeros(1)}, "x is unknown"),
    "NaN": (with_nan, "head.bias holds NaN or infinity"),
    "other prefix": (
        lambda m: {f"module.{name}": t for name, t in state_dict(m).items()},
        r"down\.0\.0\.bias is missing; .*; \.\.\.\. Either the file belongs to another model",
    ),
}


@pytest.mark.parametrize("name", PT)
def test_a_pt_file_that_is_no_state_dict_of_the_network(name, tmp_path):
    make, message = PT[name]
    model = make_tiny_model(tmp_path / "model")
    content = make(model)
    if isinstance(content, bytes):
        (model.folder / "weights.pt").write_bytes(content)
    else:
        torch.save(content, model.folder / "weights.pt")
    rewrite(model.folder, weights={"file": "weights.pt"})
    with pytest.raises(ModelError, match=message):
        load_network(find_model(model.folder))
    assert not (model.folder / "executed").exists()


def test_the_payload_would_execute_where_pickles_are_trusted(tmp_path):
    torch.save(Payload(tmp_path / "executed"), tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "executed").is_dir()


SAFETENSORS = {
    "truncated": lambda content: content[:-1],
    "header only": lambda content: content[:200],
    "empty": lambda _: b"",
    "huge header": lambda content: b"\xff" * 8 + content[8:],
    "text": lambda _: b"weights of my network",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_damaged_safetensors(name, tmp_path):
    model = make_tiny_model(tmp_path / "model")
    model.weights.write_bytes(SAFETENSORS[name](model.weights.read_bytes()))
    with pytest.raises(ModelError, match=r"to have the sha256 .* damaged or is another version"):
        find_model(model.folder)
    rewrite(model.folder, weights={"file": model.weights.name})
    with pytest.raises(ModelError, match=r"does not read as \.safetensors: .* truncated"):
        load_network(find_model(model.folder))


DESCRIPTIONS = {
    "file outside": ({"weights": {"file": "../weights.safetensors"}}, "does not match"),
    "other file": ({"weights": {"file": "other.safetensors"}}, r"at .*other\.safetensors, as mod"),
    "one class": ({"classes": ["nucleus"]}, "classes: .* is too short"),
    "channel names": ({"channels": ["a", "b"]}, "Expected 1 names in `channels` .* got 2"),
    "no limits": ({"normalisation": {"method": "range"}}, "normalisation: 'low' is a required"),
    "other shape": ({"network": {"width": 2, "depth": 1, "kernel": 5}}, r"is \(2, 1, 3, 3\) and "),
    "other depth": ({"network": {"width": 2, "depth": 2}}, "is missing"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_does_not_fit(name, tmp_path):
    changes, message = DESCRIPTIONS[name]
    model = make_tiny_model(tmp_path / "model")
    rewrite(model.folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_network(find_model(model.folder))


def test_an_unknown_model_is_answered_with_those_that_are_there():
    with pytest.raises(ModelError, match=r"got 'fluo'\. .* come with the workflow: .*fluo-nuclei"):
        find_model("fluo")


# --- The models that come with the workflow -----------------------------------------------------


def test_models_come_with_the_workflow():
    assert {"fluo-nuclei", "he-nuclei"} <= set(SHIPPED_MODELS)


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_a_shipped_model(name):
    """It loads by its name, is small enough for the repository, and says what it is and saw."""
    model = find_model(name)
    assert model.name == name == model.folder.name
    network = load_network(model)
    assert sum(p.numel() for p in network.parameters()) == model.architecture.parameters
    files = [path for path in model.folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.yaml", "weights.safetensors"} <= names
    assert names <= {"model.yaml", "weights.safetensors", *DRAWN}
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    said = yaml.safe_load((model.folder / "model.yaml").read_text(encoding="utf-8"))
    for key in ("description", "source", "licence", "trained_on", "not_seen", "metrics"):
        assert said[key], key
    assert said["weights"]["sha256"] == model.weights_sha256
    figures = [value for data in said["metrics"].values() for value in data.values()]
    assert all(0 <= value <= 1 for value in figures)
