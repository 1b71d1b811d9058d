"""Starting from known weights: a model folder, or the state dict of another U-Net.

Names mean nothing between two programs, but a U-Net of the same shape has the same convolutions in
the same order. So a weight is matched by order and shape: of the convolutions with a shape, the
first in the file is the first that a pixel passes through here, and so on; a bias goes with its
weight. Most shapes occur once. What is matched is listed, and anything left over is an error.

One thing no shape can tell: here, where the paths join, the skipped channels come before those from
below. Weights of a network that joins them the other way round fit, and have to be trained again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unet.errors import ModelError
from unet.model.folder import find_model
from unet.network.unet import UNet
from unet.network.weights import load_network, read_tensors
from unet.training.config import WEIGHT_FILES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """A tensor of the file and the one it becomes."""

    given: str
    taken: str
    shape: tuple[int, ...]


@torch.no_grad()
def load_pretrained(network: UNet, start: str) -> list[Match]:
    """Copy known weights into a network.

    start  a model's name or folder, or a .pt or .safetensors state dict

    Returns what went where. Raises ModelError where any tensor, here or there, has no counterpart.
    """
    if Path(start).suffix in WEIGHT_FILES:
        tensors = read_tensors(Path(start))
    else:
        tensors = load_network(find_model(start)).state_dict()
    wanted = network.state_dict()
    matches = match(tensors, {name: wanted[name] for name in in_order(network)}, start)
    for found in matches:
        wanted[found.taken].copy_(tensors[found.given])
        log.info("%s -> %s %s", found.given, found.taken, found.shape)
    return matches


def in_order(network: UNet) -> Iterator[str]:
    """The names of the network's tensors, in the order that a pixel passes through them."""
    depth = network.architecture.depth
    blocks = [f"down.{level}." for level in range(depth + 1)]
    for level in reversed(range(depth)):
        blocks += [f"up.{level}.", f"merge.{level}."]
    names = list(network.state_dict())
    for block in [*blocks, "head."]:
        yield from (name for name in names if name.startswith(block))


def match(given: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> list[Match]:
    """Pair the tensors of two state dicts, each in the order of its network."""
    theirs, ours = _convolutions(given), _convolutions(wanted)
    matches = []
    for weight, bias in ours:
        fits = [pair for pair in theirs if _shapes(given, pair) == _shapes(wanted, (weight, bias))]
        if not fits:
            raise ModelError(
                f"Expected in {where} a U-Net of the same shape, but it has no tensor left for "
                f"{weight} {tuple(wanted[weight].shape)}. Check width, depth, kernel, classes and "
                f"channels in the configuration; that file begins with {_beginning(given)}."
            )
        theirs.remove(fits[0])
        for from_, to in zip(fits[0], (weight, bias), strict=True):
            if from_ and to:
                matches.append(Match(from_, to, tuple(wanted[to].shape)))
    if theirs:
        left = ", ".join(f"{weight} {tuple(given[weight].shape)}" for weight, _ in theirs[:4])
        raise ModelError(
            f"Expected in {where} a U-Net of the same shape, but it holds more than this network: "
            f"{left}. It is a deeper network, or one with other layers, such as batch "
            f"normalisation."
        )
    return matches


def _convolutions(tensors: dict[str, Tensor]) -> list[tuple[str, str | None]]:
    """Weights with the biases that follow them; what is neither stands as a weight."""
    pairs: list[tuple[str, str | None]] = []
    names = list(tensors)
    while names:
        weight, *names = names
        is_bias = bool(names) and tensors[weight].dim() > 1 and tensors[names[0]].dim() == 1
        pairs.append((weight, names.pop(0) if is_bias else None))
    return pairs


def _shapes(
    tensors: dict[str, Tensor], pair: tuple[str, str | None]
) -> tuple[torch.Size | None, ...]:
    return tuple(None if name is None else tensors[name].shape for name in pair)


def _beginning(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in list(tensors.items())[:2])
