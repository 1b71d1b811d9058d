"""Starting from known weights: a model folder, or the state dict of another U-Net.

Two programs name their tensors differently, but U-Nets of the same shape have the same convolutions
in the same order. So a weight is matched by order and shape: of all convolutions with one shape,
the first in the file is the first that a pixel passes through here, and so on. A bias belongs to
its weight. Most shapes occur once. The matches are logged, and a tensor without one is an error.

One thing no shape can show: where the paths join, this network puts the channels of the skip before
those from below. Weights of a network that joins them in the other order fit, but have to be
trained once more.
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
    """A pair of tensors of equal shape: `source` in the file, `target` in this network."""

    source: str
    target: str
    shape: tuple[int, ...]


@torch.no_grad()
def load_pretrained(network: UNet, start: str) -> list[Match]:
    """Copy known weights into a network.

    start  a model's name or folder, or a .pt or .safetensors state dict

    Returns the pairs. Raises ModelError where a tensor of either network has no counterpart.
    """
    if Path(start).suffix in WEIGHT_FILES:
        tensors = read_tensors(Path(start))
    else:
        tensors = load_network(find_model(start)).state_dict()
    targets = network.state_dict()
    matches = match(tensors, {name: targets[name] for name in tensor_order(network)}, start)
    for pair in matches:
        targets[pair.target].copy_(tensors[pair.source])
        log.info("%s -> %s %s", pair.source, pair.target, pair.shape)
    return matches


def tensor_order(network: UNet) -> Iterator[str]:
    """The names of the network's tensors, in the order that a pixel passes through them."""
    depth = network.architecture.depth
    blocks = [f"down.{level}." for level in range(depth + 1)]
    for level in reversed(range(depth)):
        blocks += [f"up.{level}.", f"merge.{level}."]
    names = list(network.state_dict())
    for block in [*blocks, "head."]:
        yield from (name for name in names if name.startswith(block))


def match(sources: dict[str, Tensor], targets: dict[str, Tensor], path: str) -> list[Match]:
    """Pair the tensors of two state dicts, each in the order of its network.

    path  of the sources, for messages
    """
    unused = _convolutions(sources)
    matches = []
    for weight, bias in _convolutions(targets):
        shapes = _shapes(targets, (weight, bias))
        candidates = [pair for pair in unused if _shapes(sources, pair) == shapes]
        if not candidates:
            raise ModelError(
                f"Expected in {path} a U-Net of the same shape, but it has no tensor left for "
                f"{weight} {tuple(targets[weight].shape)}. Check width, depth, kernel, classes and "
                f"channels in the configuration; that file begins with {_beginning(sources)}."
            )
        unused.remove(candidates[0])
        for source, target in zip(candidates[0], (weight, bias), strict=True):
            if source and target:
                matches.append(Match(source, target, tuple(targets[target].shape)))
    if unused:
        names = ", ".join(f"{weight} {tuple(sources[weight].shape)}" for weight, _ in unused[:4])
        raise ModelError(
            f"Expected in {path} a U-Net of the same shape, but it holds more than this network: "
            f"{names}. Probably it is deeper, or has other layers such as batch normalisation. "
            f"Change depth, or start from another file."
        )
    return matches


def _convolutions(tensors: dict[str, Tensor]) -> list[tuple[str, str | None]]:
    """Each weight with the bias that follows it, or None; any other tensor counts as a weight."""
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
