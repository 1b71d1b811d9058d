"""A model's trained numbers: read, compared with the network they are for, and written."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from unet.errors import ModelError, excerpt
from unet.model.folder import ModelSpec, file_sha256, find_model
from unet.network.unet import UNet
from unet.storage.ownership import write_whole

OLD_PICKLES = 5  # at the start of a file of torch before 1.6: the tensors follow
STATE_DICT_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w*Storage"
    r"|torch\.storage \w*Storage"
)


class ObjectsError(ValueError):
    """A pickle names what no state dict needs."""


def load_network(spec: ModelSpec) -> UNet:
    """Build the network and load its weights: float32, ready to predict.

    Raises ModelError where a tensor is missing, left over, of another shape or not finite.
    """
    tensors = read_tensors(spec.weights)
    with torch.device("meta"):  # the shapes alone: they are compared before memory is taken
        expected = UNet(spec.architecture).state_dict()
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"{name} is unknown" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(tensor.shape)} and should be {tuple(expected[name].shape)}"
        for name, tensor in sorted(tensors.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = problems or [
        f"{name} holds NaN or infinity"
        for name, tensor in sorted(tensors.items())
        if not bool(torch.isfinite(tensor).all())
    ]
    if problems:
        listing = "; ".join(problems[:4]) + ("; ..." if len(problems) > 4 else "")
        raise ModelError(
            f"Expected in {spec.weights} the weights of the network that "
            f"{spec.folder / 'model.yaml'} describes, but {listing}. Either the file belongs to "
            f"another model, or `network` in model.yaml is not what was trained."
        )
    network = UNet(spec.architecture)
    network.load_state_dict(tensors)
    network.eval()
    return network


def save_model(folder: Path, network: UNet, description: dict[str, Any]) -> ModelSpec:
    """Write a model folder: the weights of `network` and `description` as model.yaml.

    `description` has the keys of `unet/model/model.schema.yaml` but `network` and `weights`, which
    are filled in here. Returns the model as it reads back.
    """
    a = network.architecture
    weights = folder / "weights.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_whole(weights, safetensors.torch.save(tensors))
    contents = {
        **description,
        "network": {
            "in_channels": a.in_channels,
            "width": a.width,
            "depth": a.depth,
            "dims": a.dims,
            "kernel": [list(level) for level in a.kernels],
            "pool": [list(level) for level in a.pools],
        },
        "weights": {"file": weights.name, "sha256": file_sha256(weights)},
    }
    write_whole(folder / "model.yaml", description_text(contents))
    return find_model(folder)


def description_text(contents: dict[str, Any]) -> bytes:
    """The content of a model.yaml."""
    text: str = yaml.safe_dump(contents, sort_keys=False, width=100)
    return text.encode()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file, by name. Raises ModelError; runs no code of it."""
    try:
        loaded = _load(path)
    except Exception as error:  # an unpickler raises whatever the bytes make of it
        # torch raises pickle.UnpicklingError, whose module this project does not import.
        if isinstance(error, ObjectsError) or type(error).__name__ == "UnpicklingError":
            raise ModelError(
                f"Expected a plain state dict in {path}, got a pickle that holds code or objects, "
                f"which is never executed. Save it with torch.save(network.state_dict(), path)."
            ) from error
        raise ModelError(
            f"Expected weights in {path}, but the file does not read as {path.suffix}: "
            f"{excerpt(error)}. It is probably truncated; fetch it again."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ModelError(
            f"Expected a plain state dict (names to tensors) in {path}, got "
            f"{type(loaded).__name__}. Save it with torch.save(network.state_dict(), path)."
        )
    unusual = [name for name, tensor in loaded.items() if not _is_plain(tensor)]
    if unusual:
        raise ModelError(
            f"Expected tensors of real numbers in {path}, but {unusual[0]} is of another kind, "
            f"such as sparse. Save it with torch.save(network.float().cpu().state_dict(), path)."
        )
    return loaded


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    for name in _names_called(path):
        if not STATE_DICT_NAMES.fullmatch(name):
            raise ObjectsError(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which tells of a damaged file before it fails
        return torch.load(path, map_location="cpu", weights_only=True)


def _names_called(path: Path) -> Iterator[str]:
    """What the pickles of a .pt file name. Raises ValueError for a file that unpacks to more.

    Why: torch refuses names that run code, but not bytearray, of any length.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            for _ in range(OLD_PICKLES):
                yield from _names_in(file)
            return
        with zipfile.ZipFile(file) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("it is compressed, as torch writes none")
            for name in members.namelist():
                if name.endswith("data.pkl"):
                    yield from _names_in(io.BytesIO(members.read(name)))


def _names_in(file: IO[bytes]) -> Iterator[str]:
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a real number in memory for each of its values."""
    kind = (tensor.device.type, tensor.layout, tensor.is_quantized, tensor.is_complex())
    return kind == ("cpu", torch.strided, False, False)
