"""Train one of the two demo models: `python scripts/train.py fluo-nuclei --data ../shared/data`.

Why so plain: the demo needs two small models whose making anyone can read and repeat. What makes
them good is in three places: the border weights of the 2015 paper, which keep touching nuclei
apart; the variation that the few pictures are drawn with; and the mean of the weights over the
last steps, which is what is saved. The last weights are taken, never the best on held-out pictures.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor, nn
from train_data import RECIPES, Picture, Recipe

from unet.model import UNet
from unet.weights import save_model

WIDTH = 16  # channels of the first level: 7.8 MB of weights
WINDOW = 380  # -> 196 x 196 logits: on a CPU twice as many pixels a second as 284 -> 100
CONTEXT = 92  # what the network reads to each side of what it predicts
BATCH = 2
LEARNING_RATE = 1e-3
WARM_UP = 0.04  # of the training
LARGEST_GRADIENT = 1.0
EMA_DECAY = 0.995
BORDER_WEIGHT, BORDER_SIGMA = 6.0, 3.0  # 10 and 5 in the paper, whose cells are twice as wide
ON_NUCLEUS = 0.7  # of the windows have a nucleus in their centre
# Optical density of haematoxylin, eosin and what is left (Ruifrok & Johnston 2001), one dye a row.
DYES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DYES /= np.linalg.norm(DYES, axis=1, keepdims=True)
FLOOR = 1 / 255  # the darkest light that has a logarithm

Floats = NDArray[np.floating[Any]]
log = logging.getLogger("train")


@dataclass(frozen=True)
class Options:
    """The command line. Training ends after `steps` where given, else after `minutes`."""

    model: str
    data: Path
    out: Path
    minutes: float
    steps: int | None
    report: float
    threads: int
    seed: int


@dataclass(frozen=True)
class Example:
    """A picture ready to be drawn from; all (Y, X) but `picture`."""

    picture: Picture
    target: NDArray[np.uint8]
    weights: NDArray[np.float32]
    nuclei: NDArray[np.intp]  # flat positions of nucleus pixels

    @classmethod
    def of(cls, picture: Picture) -> Example:
        """Cut a background seam between touching nuclei, and weigh the background near two."""
        low = np.where(picture.labels > 0, picture.labels, np.iinfo(np.int32).max)
        touching = ndimage.maximum_filter(picture.labels, 3) != ndimage.minimum_filter(low, 3)
        apart = np.where(touching, 0, picture.labels)
        weights = np.where(apart > 0, 1, 1 + border_weights(apart)).astype(np.float32)
        return cls(picture, (apart > 0).astype(np.uint8), weights, np.flatnonzero(apart))


def border_weights(labels: NDArray[np.int32]) -> Floats:
    """w0 * exp(-(d1 + d2)^2 / 2 sigma^2), d1 and d2 the distances to the two nearest nuclei."""
    reach = math.ceil(4 * BORDER_SIGMA)  # beyond it the weight is below w0 / 2000
    nearest = np.full((2, *labels.shape), np.inf)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(labels[wide] != label)
        first, second = nearest[0][wide], nearest[1][wide]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    weights: Floats = BORDER_WEIGHT * np.exp(-(nearest.sum(axis=0) ** 2) / (2 * BORDER_SIGMA**2))
    return weights


def draw(example: Example, stained: bool, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A window (C, Y, X), and the target and the weights of what it predicts (2, Y', X').

    Turned, mirrored, magnified and bent at random; past the border the picture is mirrored.
    """
    picture, at = example.picture, places(example, rng)  # (2, Y, X)
    pixels = np.stack(
        [ndimage.map_coordinates(channel, at, order=1, mode="mirror") for channel in picture.pixels]
    )
    inner = at[:, CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
    wanted = np.stack(
        [
            ndimage.map_coordinates(plane, inner, order=0, mode="mirror", output=np.float32)
            for plane in (example.target, example.weights)
        ]
    )
    return (restain(pixels, rng) if stained else relight(pixels, rng)), wanted


def places(example: Example, rng: np.random.Generator) -> Floats:
    """Where in the picture each pixel of a window lies, y and x: (2, Y, X)."""
    picture = example.picture
    zoom = math.exp(rng.uniform(*np.log(picture.zoom)))
    angle, flip = rng.uniform(0, 2 * math.pi), rng.choice([-1, 1])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shape = picture.labels.shape
    if example.nuclei.size and rng.random() < ON_NUCLEUS:
        centre = np.array(np.unravel_index(rng.choice(example.nuclei), shape))
    else:
        centre = rng.uniform(0, 1, 2) * shape
    centre = centre + rng.normal(0, 30, 2)
    steps = np.arange(WINDOW) - WINDOW / 2
    grid = np.stack(np.meshgrid(steps, steps * flip, indexing="ij")) / zoom
    at: Floats = np.einsum("ij,jyx->iyx", turn, grid) + centre[:, None, None]
    bend = rng.normal(0, 2.5, (2, 6, 6))
    at += np.stack([ndimage.zoom(axis, WINDOW / 6, order=3) for axis in bend])
    return at


def relight(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Vary brightness, contrast, gamma, sharpness and noise of a fluorescence window."""
    pixels = np.clip(pixels, 0, None) ** math.exp(rng.uniform(-0.5, 0.5))
    pixels = pixels * math.exp(rng.uniform(-0.5, 0.4)) + rng.uniform(-0.05, 0.1)
    return blur_and_noise(pixels, rng, noise=0.06)


def restain(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Vary how much of each dye a window holds and its hue, then light, sharpness and noise."""
    density = -np.log(np.clip(pixels, FLOOR, None)).reshape(3, -1)
    dyes = DYES + rng.normal(0, 0.06, DYES.shape)
    amounts = np.linalg.inv(DYES.T) @ density
    amounts *= np.exp(rng.uniform(-0.5, 0.5, (3, 1)))
    light = np.exp(-(dyes.T @ amounts)).reshape(pixels.shape)
    light = np.clip(light, 0, 1) ** math.exp(rng.uniform(-0.35, 0.35))
    light = light * rng.uniform(0.85, 1.08, (3, 1, 1)) * rng.uniform(0.9, 1.05)
    return np.clip(blur_and_noise(light, rng, noise=0.03), 0, 1)


def blur_and_noise(pixels: Floats, rng: np.random.Generator, noise: float) -> Floats:
    """Blur one window in four, sharpen one in eight, and add noise to every other."""
    if rng.random() < 0.25:
        pixels = ndimage.gaussian_filter(pixels, (0, *[rng.uniform(0.4, 1.4)] * 2))
    elif rng.random() < 1 / 6:
        soft = ndimage.gaussian_filter(pixels, (0, 1, 1))
        pixels = pixels + rng.uniform(0.2, 0.8) * (pixels - soft)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(0, noise), pixels.shape)
    return pixels


def batch_of(
    examples: list[Example], recipe: Recipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (B, C, Y, X), targets (B, Y', X') and weights (B, Y', X')."""
    shares = np.array([example.picture.share for example in examples])
    chosen = rng.choice(len(examples), BATCH, p=shares / shares.sum())
    drawn = [draw(examples[index], recipe.stained, rng) for index in chosen]
    pixels = torch.from_numpy(np.stack([p for p, _ in drawn])).float()
    wanted = torch.from_numpy(np.stack([w for _, w in drawn]))
    return pixels.to(memory_format=torch.channels_last), wanted[:, 0].long(), wanted[:, 1].float()


def probability(network: UNet, pixels: NDArray[np.float32]) -> Floats:
    """Probability of a nucleus (Y, X) in a whole picture (C, Y, X), mirrored, in one window."""
    a = network.architecture
    sizes = pixels.shape[1:]
    core = [-(-size // step) * step for size, step in zip(sizes, a.stride, strict=True)]
    ends = [
        (before, after + full - size)
        for (before, after), full, size in zip(a.halo, core, sizes, strict=True)
    ]
    window = torch.from_numpy(np.pad(pixels, [(0, 0), *ends], mode="reflect"))[None]
    with torch.inference_mode():
        logits = network(window.to(memory_format=torch.channels_last))
    cut = a.halo[0][0] - a.context[0]  # computed and not kept
    inner = logits[0, :, cut : cut + sizes[0], cut : cut + sizes[1]]
    nucleus: Floats = inner.softmax(0)[1].numpy()
    return nucleus


def measure(network: UNet, pictures: list[Picture]) -> dict[str, float]:
    """Dice and IoU of nucleus pixels at probability 0.5, over all pixels of the pictures."""
    both = found = wanted = 0
    for picture in pictures:
        mask, truth = probability(network, picture.pixels) > 0.5, picture.labels > 0
        both += int((mask & truth).sum())
        found += int(mask.sum())
        wanted += int(truth.sum())
    return {
        "dice": round(2 * both / (found + wanted), 3),
        "iou": round(both / (found + wanted - both), 3),
    }


def train(recipe: Recipe, options: Options) -> None:
    """Train to the end of `options`; what is saved is the mean of the last weights.

    Raises SystemExit where the loss is not finite.
    """
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    examples = [Example.of(picture) for picture in recipe.train]
    network = UNet(in_channels=len(recipe.train[0].pixels), width=WIDTH)
    mean = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    start, step, done, reported = time.monotonic(), 0, 0.0, 0.0
    losses: list[float] = []
    while done < 1:
        rate = min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * done))) + 1e-3
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate
        losses.append(descend(network, optimiser, *batch_of(examples, recipe, rng)))
        step += 1
        follow(mean, network, min(EMA_DECAY, (1 + step) / (10 + step)))
        minutes = (time.monotonic() - start) / 60
        done = step / options.steps if options.steps else minutes / options.minutes
        if minutes - reported >= options.report or done >= 1:
            reported = minutes
            metrics = save(mean, recipe, options, step)
            log.info("%.1f min, step %d, loss %.4f, %s", minutes, step, np.mean(losses), metrics)
            losses.clear()


def descend(
    network: UNet, optimiser: torch.optim.Optimizer, pixels: Tensor, target: Tensor, weights: Tensor
) -> float:
    """One step down the weighted cross-entropy of one batch; returns the loss."""
    each = nn.functional.cross_entropy(network(pixels), target, reduction="none")
    loss = (each * weights).sum() / weights.sum()
    if not bool(torch.isfinite(loss)):
        raise SystemExit(
            f"Expected a finite loss, got {loss.item()}. The pictures hold values that are not "
            f"finite, or LEARNING_RATE is too high: lower it."
        )
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    return loss.item()


def follow(mean: UNet, network: UNet, decay: float) -> None:
    """Move the mean of the weights towards the present weights."""
    with torch.no_grad():
        for kept, now in zip(mean.parameters(), network.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


def save(mean: UNet, recipe: Recipe, options: Options, steps: int) -> dict[str, dict[str, float]]:
    """Write the model folder as it stands, and measure it on the pictures kept away."""
    metrics = {name: measure(mean, pictures) for name, pictures in recipe.held_out.items()}
    length = f"--steps {options.steps}" if options.steps else f"--minutes {options.minutes:g}"
    source = (
        f"python scripts/train.py {options.model} --data {options.data} {length} --threads "
        f"{options.threads} --seed {options.seed}: {steps} steps of {BATCH} windows of "
        f"{WINDOW} x {WINDOW} pixels"
    )
    described = {**recipe.description, "source": source, "metrics": metrics}
    save_model(options.out / options.model, mean, described)
    return metrics


def main() -> None:
    """Read the command line, train, and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("resources/models"))
    parser.add_argument("--minutes", type=float, default=36, help="how long to train")
    parser.add_argument("--steps", type=int, help="instead of minutes, to repeat a run exactly")
    parser.add_argument("--report", type=float, default=2, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2015)
    options = Options(**vars(parser.parse_args()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    train(RECIPES[options.model](options.data), options)


if __name__ == "__main__":
    main()
