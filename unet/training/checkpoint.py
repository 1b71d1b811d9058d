"""The file that a stopped training resumes from: one safetensors file, written whole or not at all.

Why no pickle: a checkpoint is a file like any other, and opening a file must not run code. Tensors
are named `weights.*`, `mean.*`, `first.*` and `second.*` (AdamW's moments); the number of the step
and the learning curves are JSON in the header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from unet.errors import StoreError
from unet.network.unet import UNet
from unet.storage.ownership import write_whole

Row = dict[str, Any]


@dataclass
class State:
    """A training between two steps.

    network  the weights that are trained
    mean     their running mean, which is what is saved in the end
    step     how many steps are finished
    seconds  that they took, in all processes that worked on them
    curves   one row per report
    """

    network: UNet
    mean: UNet
    optimiser: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    curves: list[Row] = field(default_factory=list)


def save(path: Path, state: State) -> None:
    """Write a checkpoint; it replaces the one before."""
    tensors: dict[str, Tensor] = {}
    for kind, network in (("weights", state.network), ("mean", state.mean)):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in state.network.named_parameters():
        moments = state.optimiser.state[parameter]
        tensors[f"first.{name}"] = moments["exp_avg"]
        tensors[f"second.{name}"] = moments["exp_avg_sq"]
    progress = {"step": state.step, "seconds": state.seconds, "curves": state.curves}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(on_cpu, {"state": json.dumps(progress)}))


def load(path: Path, state: State) -> None:
    """Fill a new state from a checkpoint. Raises StoreError where it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state.step, state.seconds = progress["step"], progress["seconds"]
        state.curves = progress["curves"]
        _fill(state, tensors)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"Expected the checkpoint of an earlier start in {path}, but it does not read as one "
            f"({error}). Delete it to train from the beginning."
        ) from error


@torch.no_grad()
def _fill(state: State, tensors: dict[str, Tensor]) -> None:
    """Copy in place: every tensor keeps its memory layout, on which the bits of sums depend."""
    for kind, network in (("weights", state.network), ("mean", state.mean)):
        for name, tensor in network.state_dict().items():
            tensor.copy_(tensors[f"{kind}.{name}"])
    for name, parameter in state.network.named_parameters():
        first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first.copy_(tensors[f"first.{name}"])
        second.copy_(tensors[f"second.{name}"])
        state.optimiser.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": first,
            "exp_avg_sq": second,
        }
