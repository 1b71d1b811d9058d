"""Training: it learns, it resumes, and it never sees the images that it is measured on."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from numpy.typing import NDArray
from support import assert_loopback_only, listening, watched

from unet.errors import ConfigError, DeviceError, ModelError, RunError, SourceError, StoreError
from unet.evaluation.metrics import PixelCounts
from unet.fingerprint import fingerprint
from unet.model.architecture import Architecture
from unet.model.folder import file_sha256
from unet.network.inference import load_model, predict
from unet.network.unet import UNet
from unet.stages import train
from unet.training import checkpoint
from unet.training.config import Training, read_training
from unet.training.labelled import read_all, training_identity
from unet.training.pretrained import load_pretrained, tensor_order
from unet.training.sampling import Sampler
from unet.training.trainer import Trainer, initial_state, rate

LEARNED = 0.9  # Dice that a network of 4 channels has to reach on an image it was not trained on


def discs(side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Bright discs in noise that is as strong as half of their contrast, and their instances."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.uint16)
    y, x = np.ogrid[:side, :side]
    for label in range(1, side * side // 600):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(5, 11)
        labels[np.hypot(y - centre[0], x - centre[1]) < radius] = label
    image = rng.normal(80, 20, labels.shape) + 40 * (labels > 0)
    return image.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled images, a.tif and b.tif, with a_label.tif and b_label.tif."""
    folder = tmp_path_factory.mktemp("labelled")
    for seed, name in enumerate("ab"):
        image, labels = discs(160, seed)
        tifffile.imwrite(folder / f"{name}.tif", image)
        tifffile.imwrite(folder / f"{name}_label.tif", labels)
    return folder


def section(folder: Path, **changed: Any) -> dict[str, Any]:
    """The section `train` of a small training; `changed` goes over it."""
    return {
        "name": "discs",
        "classes": ["background", "disc"],
        "images": [
            {"image": str(folder / "a.tif"), "label": str(folder / "a_label.tif")},
            {
                "image": str(folder / "b.tif"),
                "label": str(folder / "b_label.tif"),
                "validate": True,
            },
        ],
        "network": {"width": 4, "depth": 2},
        "window": [84, 84],
        "learning_rate": 0.01,
        "average": 0.9,
        "border": {"weight": 2, "sigma": 3},
        "steps": 6,
        "report": 2,
        **changed,
    }


def training_of(folder: Path, **changed: Any) -> Training:
    return read_training(section(folder, **changed))


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


# --- It learns ----------------------------------------------------------------------------------


def test_a_small_network_learns_and_predict_can_use_the_model(folder, tmp_path):
    training = training_of(folder, window=[124, 124], steps=200, report=100)
    train.run(training, tmp_path / "discs", threads=1, gpus=0)
    image, labels = discs(160, seed=7)
    mask = predict(load_model(tmp_path / "discs"), image)[1] > 0.5
    assert PixelCounts.of(mask, labels > 0).scores()["dice"] > LEARNED

    description = yaml.safe_load((tmp_path / "discs" / "model.yaml").read_text(encoding="utf-8"))
    assert description["metrics"]["images"]["dice"] > LEARNED
    assert [entry["image"] for entry in description["trained_on"]] == ["a.tif"]
    assert [entry["image"] for entry in description["not_seen"]] == ["b.tif"]
    assert (
        description["trained_on"][0]["pixels_sha256"] != description["not_seen"][0]["pixels_sha256"]
    )
    with (tmp_path / "discs" / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [100, 200]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert (tmp_path / "discs" / "curves.svg").read_text().count("<polyline") == 3
    assert not (tmp_path / "discs" / "work").exists()


def test_a_3d_network_trains_on_some_planes_and_is_measured_on_others(folder, tmp_path):
    image, labels = discs(60, seed=3)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([image] * 12))
    np.savez(tmp_path / "stack_label.npz", labels=np.stack([labels] * 12))
    training = read_training(
        section(
            folder,
            images=[
                {
                    "image": str(tmp_path / "stack.tif"),
                    "label": str(tmp_path / "stack_label.npz"),
                    "axes": "zyx",
                    "label_axes": "zyx",
                    "train": {"z": [0, 8]},
                    "validate": {"z": [8, 12]},
                }
            ],
            classes=["background", "inside", "border"],
            network={
                "width": 2, "depth": 1, "dims": 3, "kernel": [[1, 3, 3], [3, 3, 3]],
                "pool": [[1, 2, 2]],
            },
            window=[8, 36, 36],
            measures=["pixels", "instances"],
        ),
    )  # fmt: skip
    train.run(training, tmp_path / "model", threads=1, gpus=0)
    description = yaml.safe_load((tmp_path / "model" / "model.yaml").read_text(encoding="utf-8"))
    assert description["trained_on"][0]["z"] == [0, 8]
    assert description["not_seen"][0]["z"] == [8, 12]
    assert {"dice", "ap_50"} <= description["metrics"]["images"].keys()
    assert load_model(tmp_path / "model").spec.architecture.classes == 3


# --- It resumes ---------------------------------------------------------------------------------


class StoppedError(Exception):
    """Raised by a test to end a training."""


def run_training(training: Training, file: Path, stop_after: int | None = None) -> checkpoint.State:
    """Train as the stage does, or stop when the row of step `stop_after` would be measured."""
    data = read_all(training)
    state = initial_state(training, 1, "cpu")
    if file.exists():
        checkpoint.load(file, state)

    def measure(_network: UNet) -> dict[str, float]:
        if state.step == stop_after:
            raise StoppedError
        return {}

    Trainer(training, state, Sampler(training, data), measure, file).run()
    return state


def bits(state: checkpoint.State) -> dict[str, bytes]:
    both = {"now": state.network, "mean": state.mean}
    return {
        f"{kind} {name}": tensor.detach().numpy().tobytes()
        for kind, network in both.items()
        for name, tensor in network.state_dict().items()
    }


def test_a_stopped_training_goes_on_and_ends_in_the_same_bits(folder, tmp_path):
    training = training_of(folder, batch=2, network={"width": 3, "depth": 1, "dropout": 0.3})
    whole = run_training(training, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_training(training, tmp_path / "parts", stop_after=4)
    assert json_state(tmp_path / "parts")["step"] == 2
    resumed = run_training(training, tmp_path / "parts")
    assert bits(resumed) == bits(whole)
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in state.curves]
        for state in (resumed, whole)
    ]
    assert without_time[0] == without_time[1]


def json_state(path: Path) -> dict[str, Any]:
    import json

    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return dict(json.loads(file.metadata()["state"]))


def test_the_same_seed_gives_the_same_model_and_another_seed_another(folder, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train.run(training_of(folder, seed=seed), tmp_path / name, threads=1, gpus=0)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


def test_a_sample_depends_on_seed_step_and_index_only(folder):
    training = training_of(folder)
    first, second = (Sampler(training, read_all(training)) for _ in range(2))
    second.draw(0, 0)
    drawn = [first.draw(5, 1), second.draw(5, 1), second.draw(5, 2)]
    assert np.array_equal(drawn[0].pixels, drawn[1].pixels)
    assert np.array_equal(drawn[0].weights, drawn[1].weights)
    assert not np.array_equal(drawn[0].pixels, drawn[2].pixels)


def identity(training: Training) -> str:
    starts = list(map(file_sha256, training.start_files))
    return fingerprint(training_identity(training, read_all(training), starts))


def test_other_settings_never_resume_from_the_same_checkpoint(folder):
    def names(**changed: Any) -> str:
        training = training_of(folder, **changed)
        return identity(training)

    assert names() == names(description="in other words", measures=["instances"])
    assert len({names(), names(seed=1), names(steps=7), names(window=[76, 76])}) == 4


def test_a_corrected_mask_of_what_is_annotated_is_another_training(folder, tmp_path):
    def name(rows: int) -> str:
        mask = np.zeros((160, 160), np.uint8)
        mask[:rows] = 1
        np.save(tmp_path / "mask.npy", mask)
        images = section(folder)["images"]
        images[0]["annotated"] = str(tmp_path / "mask.npy")
        training = training_of(folder, images=images)
        return identity(training)

    first = name(80)
    assert name(80) == first
    assert name(90) != first


def test_a_damaged_checkpoint_is_named(folder, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(StoreError, match="Delete it to train from the beginning"):
        checkpoint.load(tmp_path / "c.safetensors", initial_state(training_of(folder), 1, "cpu"))


def test_a_loss_that_is_not_finite_names_the_sample(folder, tmp_path):
    training = training_of(folder, learning_rate=1e30)
    with pytest.raises(RunError, match=r"sample 0 of step \d+, around z 0, y .* in .*a\.tif"):
        train.run(training, tmp_path / "m", threads=1, gpus=0)
    assert not (tmp_path / "m" / "model.yaml").exists()


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder, tmp_path):
    """Gradients are those of the whole batch, however many processes it is spread over."""
    training = training_of(folder, batch=2, network={"width": 2, "depth": 1}, steps=3, report=3)
    alone = run_training(training, tmp_path / "alone")
    with watched(listening) as sockets:
        train.train_in_parallel(["cpu", "cpu"], training, tmp_path / "both")
    assert_loopback_only(sockets)
    both = initial_state(training, 1, "cpu")
    checkpoint.load(tmp_path / "both", both)
    for (name, one), two in zip(
        alone.network.state_dict().items(), both.network.state_dict().values(), strict=True
    ):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_an_error_of_one_process_is_raised_by_the_first(folder, tmp_path):
    training = training_of(folder, batch=2, learning_rate=1e30)
    with pytest.raises(RunError, match="Expected a finite loss"):
        train.train_in_parallel(["cpu", "cpu"], training, tmp_path / "both")


def test_a_training_logs_its_memory_and_its_time_at_the_start(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "unet"):
        train.run(training_of(folder), tmp_path / "m", threads=1, gpus=0)
    log = "\n".join(caplog.messages)
    assert "1 images (0.0 megapixels) to train on, 1 to measure on" in log
    assert "GB of memory" in log
    assert "a step takes" in log


def test_the_learning_rate_rises_and_falls():
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] < rates[20] < max(rates) <= 1.001
    assert np.argmax(rates) in range(30, 60)
    assert rates[-1] < 0.002


def test_in_bfloat16_the_weights_stay_float32(folder, tmp_path):
    training = training_of(folder, precision="bfloat16", network={"width": 2, "depth": 1})
    state = run_training(training, tmp_path / "c")
    assert {p.dtype for p in state.network.parameters()} == {torch.float32}
    exact = run_training(training_of(folder, network={"width": 2, "depth": 1}), tmp_path / "d")
    assert bits(state) != bits(exact)
    losses = [[row["loss"] for row in of.curves] for of in (state, exact)]
    assert np.allclose(*losses, rtol=0.05)


def test_dropout_is_for_training_only(folder):
    network = initial_state(
        training_of(folder, network={"width": 2, "depth": 1, "dropout": 0.5}), 1, "cpu"
    ).network
    x = torch.randn(1, 1, 24, 24)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


# --- The data never leaks ----------------------------------------------------------------------


def stack(folder: Path, **parts: Any) -> dict[str, Any]:
    return {
        "image": str(folder / "stack.tif"),
        "label": str(folder / "stack.tif"),
        "axes": "zyx",
        "label_axes": "zyx",
        **parts,
    }


@pytest.fixture(scope="module")
def planes(folder: Path) -> Path:
    """stack.tif, in which every pixel of plane z is z + 1, and so is its label."""
    volume = np.ones((6, 90, 90), np.uint8) * np.arange(1, 7, dtype=np.uint8)[:, None, None]
    tifffile.imwrite(folder / "stack.tif", volume)
    return folder


@pytest.mark.parametrize("dims", [2, 3])
def test_no_sample_holds_a_pixel_of_what_is_validated_on(planes, dims):
    training = training_of(
        planes,
        images=[stack(planes, train={"z": [0, 3]}, validate={"z": [3, 6]})],
        normalisation={"method": "range", "low": 0, "high": 1},
        network={"dims": dims, "depth": 1, "pool": [1, 2, 2][-dims:], "width": 2},
        window=[13, 24, 24][-dims:],
        augment=dict.fromkeys(("gain", "gamma", "offset", "blur", "noise"), 0),
    )
    data = read_all(training)
    assert set(np.unique(data.validation_parts[0].pixels)) == {4, 5, 6}
    sampler = Sampler(training, data)
    for step in range(20):
        assert sampler.draw(step, 0).pixels.max() < 3.5


@pytest.mark.parametrize(
    ("train_part", "validate_part"),
    [
        ({"z": [0, 4]}, {"z": [3, 6]}),
        ({"z": [0, 3]}, {"y": [0, 50]}),
        (True, {"z": [3, 6]}),
        (True, True),
    ],
)
def test_parts_that_overlap_are_refused(planes, train_part, validate_part):
    with pytest.raises(ConfigError, match="no pixel in common"):
        training_of(planes, images=[stack(planes, train=train_part, validate=validate_part)])
    listed_twice = [stack(planes, train=train_part), stack(planes, validate=validate_part)]
    with pytest.raises(ConfigError, match="no pixel in common"):
        training_of(planes, images=listed_twice)


def test_a_copy_under_another_name_is_refused(folder, tmp_path):
    tifffile.imwrite(tmp_path / "copy.tif", tifffile.imread(folder / "a.tif"), compression="zlib")
    images = section(folder)["images"]
    images[1]["image"] = str(tmp_path / "copy.tif")
    with pytest.raises(SourceError, match=r"copy\.tif has the same pixels as .*a\.tif"):
        read_all(training_of(folder, images=images))


@pytest.mark.parametrize("parts", [({}, {}), ({"y": [0, 80]}, {"y": [80, 160]})])
def test_a_copy_of_the_same_name_in_another_folder_is_refused(folder, tmp_path, parts):
    (tmp_path / "a.tif").write_bytes((folder / "a.tif").read_bytes())
    images = section(folder)["images"]
    images[0]["train"] = parts[0] or True
    images[1] |= {"image": str(tmp_path / "a.tif"), "validate": parts[1] or True}
    with pytest.raises(SourceError, match=r"has the same pixels as .*a\.tif"):
        read_all(training_of(folder, images=images))


def test_a_link_and_its_target_are_one_image(folder, tmp_path):
    (tmp_path / "b.tif").symlink_to(folder / "a.tif")
    images = section(folder)["images"]
    images[1]["image"] = str(tmp_path / "b.tif")
    with pytest.raises(ConfigError, match="no pixel in common"):
        training_of(folder, images=images)
    images[0]["train"], images[1]["validate"] = {"y": [0, 80]}, {"y": [80, 160]}
    assert len(read_all(training_of(folder, images=images)).validation_parts) == 1


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wndow": [84, 84]}, "unknown key 'wndow'; did you mean 'window'"),
        ({"window": [85, 85]}, "nearest legal sizes are 84 and 88"),
        ({"window": [8, 84, 84]}, "window: expected 2 numbers"),
        ({"objects": "disk"}, "objects: expected one of the classes background, disc"),
        ({"class_weights": [1]}, "class_weights: expected 2"),
        ({"classes": list("abcd")}, "expected class masks"),
        ({"network": {"kernel": 2}}, "odd kernel sizes"),
        ({"start": "gone.pt"}, "start: expected the weights"),
        ({"start": "no-model"}, "Expected a model's name"),
    ],
)
def test_a_wrong_setting_is_named_before_an_image_is_opened(folder, changed, message):
    with pytest.raises(ConfigError, match=message):
        training_of(folder, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "small.tif"}, "the size of its image"),
        ({"train": {"y": [0, 500]}}, "to lie inside"),
        ({"values": [0, 1]}, "Correct `values`"),
        ({"image": "nan.npy"}, "finite pixel values"),
        ({"label": "half.npy"}, "whole numbers"),
    ],
)
def test_labelled_images_that_cannot_be_used_are_named(folder, changed, message):
    tifffile.imwrite(folder / "small.tif", np.zeros((90, 90), np.uint8))
    np.save(folder / "nan.npy", np.full((160, 160), np.nan, np.float32))
    np.save(folder / "half.npy", np.full((160, 160), 0.5, np.float32))
    changed = {
        key: str(folder / value) if isinstance(value, str) else value
        for key, value in changed.items()
    }
    images = section(folder)["images"]
    with pytest.raises(SourceError, match=message):
        read_all(training_of(folder, images=[{**images[0], **changed}]))


# --- Starting from known weights ----------------------------------------------------------------


class Foreign(torch.nn.Module):
    """A U-Net of two levels as somebody else might write it: other names, another order."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()

        def double(a: int, b: int) -> torch.nn.Sequential:
            convolutions = torch.nn.Conv2d(a, b, 3), torch.nn.Conv2d(b, b, 3)
            return torch.nn.Sequential(convolutions[0], torch.nn.ReLU(), convolutions[1])

        self.enc1, self.enc2 = double(1, width), double(width, 2 * width)
        self.bottom = double(2 * width, 4 * width)
        self.dec2, self.dec1 = double(4 * width, 2 * width), double(2 * width, width)
        self.up2 = torch.nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up1 = torch.nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = torch.nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def join(skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            cut = (skip.shape[-1] - x.shape[-1]) // 2
            return torch.cat([skip[..., cut : skip.shape[-2] - cut, cut : -cut or None], x], 1)

        pool, relu = torch.nn.functional.max_pool2d, torch.relu
        one = relu(self.enc1(x))
        two = relu(self.enc2(pool(one, 2)))
        x = relu(self.bottom(pool(two, 2)))
        x = relu(self.dec2(join(two, self.up2(x))))
        x = relu(self.dec1(join(one, self.up1(x))))
        return self.last(x)


def test_a_foreign_state_dict_computes_the_same_here(tmp_path):
    torch.manual_seed(4)
    foreign = Foreign()
    torch.save(foreign.state_dict(), tmp_path / "foreign.pt")
    network = UNet(Architecture.of(width=3, depth=2))
    matches = load_pretrained(network, str(tmp_path / "foreign.pt"))
    assert len(matches) == len(foreign.state_dict()) == len(list(tensor_order(network)))
    assert matches[0].source == "enc1.0.weight"
    assert matches[0].target == "down.0.0.weight"
    x = torch.randn(1, 1, 60, 60)
    with torch.no_grad():
        assert torch.allclose(foreign(x), network(x), atol=1e-5)


def test_the_network_of_2015_is_matched_in_its_own_order():
    with torch.device("meta"):
        network = UNet()
    names = list(tensor_order(network))
    assert names[0] == "down.0.0.weight"
    assert names[-1] == "head.bias"
    assert sorted(names) == sorted(network.state_dict())
    assert names.index("up.3.weight") < names.index("merge.3.0.weight") < names.index("up.2.weight")


@pytest.mark.parametrize(
    ("width", "depth", "message"),
    [(4, 2, "no tensor left for down.0.0.weight"), (3, 1, "holds more than this network")],
)
def test_a_tensor_without_a_counterpart_is_an_error(tmp_path, width, depth, message):
    torch.save(Foreign().state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(ModelError, match=message):
        load_pretrained(
            UNet(Architecture.of(width=width, depth=depth)), str(tmp_path / "foreign.pt")
        )


def test_only_gpus_that_were_asked_for_are_refused(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in ("auto", "gpu"):
        assert train.choose_gpus(training_of(folder, device=device), 0) == 1
        assert train.choose_gpus(training_of(folder, device=device, batch=3), 0) == 2
    assert train.choose_gpus(training_of(folder, device="cpu", batch=3), 0) == 0
    assert train.choose_gpus(training_of(folder, batch=3), 1) == 1
    with pytest.raises(DeviceError, match="a batch of 1 for 2 GPUs"):
        train.choose_gpus(training_of(folder), 2)


def test_a_training_starts_from_a_model_folder(folder, make_model):
    spec = make_model(width=3, depth=1, seed=9)
    training = training_of(folder, network={"width": 3, "depth": 1}, start=str(spec.folder))
    network = initial_state(training, 1, "cpu").network
    for name, tensor in load_model(spec.folder).network.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
