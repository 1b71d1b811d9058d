"""Windows to train on: sample (seed, step, index) is a pure function of these three numbers.

So a training that goes on sees what it would have seen, several processes share the samples of a
step without talking, and a sample that made trouble can be drawn again.

A window is drawn from the coordinates backwards: where each of its pixels lies in the image, after
turning, mirroring, magnifying and the elastic deformation of the 2015 paper (random displacements
on a coarse grid, interpolated by cubic splines). Past the border the image is mirrored. The classes
are drawn for the network's output only, which is smaller than the window.

Why scipy.ndimage and not a library of augmentations: those known to us return image and label of
one size, are made for 2D or for volumes but not both, or resample once for each step. One
`map_coordinates` for all of geometry does 2D and 3D, blurs once, and is the smaller dependency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.planning.axes import Sizes
from unet.training.config import Augment, Training
from unet.training.labelled import Labelled, Split
from unet.training.targets import Target, target

# Optical density of haematoxylin, eosin and what is left (Ruifrok & Johnston 2001), one dye a row.
DYES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DYES /= np.linalg.norm(DYES, axis=1, keepdims=True)
DYE_DEVIATION = 0.06  # of the dyes' colours, between laboratories and scanners
LAMP = 0.15  # how far the light of each channel varies
DARKEST = 1 / 255  # the darkest light that has a logarithm
BRIGHT = 99.5  # percentile of a window's brightest values
SATURATED = (0.2, 0.9)  # of these, where they are cut off
DIMMEST = 0.1  # windows whose brightest values are darker show noise, not objects
OFF_CENTRE = 30  # pixels, deviation of a window's centre from the object it was drawn for

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sample:
    """One window.

    pixels   (C, [Z,] Y, X) float32
    classes  ([Z',] Y', X') int64, of the network's output
    weights  ([Z',] Y', X') float32
    name     where it is from, for messages
    """

    pixels: NDArray[np.float32]
    classes: NDArray[np.int64]
    weights: NDArray[np.float32]
    name: str


class Sampler:
    """Draws samples from what is trained on."""

    def __init__(self, training: Training, split: Split) -> None:
        self._training = training
        self._targets = [(part, target(part, training)) for part in split.seen]
        shares = np.array([part.said.share for part in split.seen])
        self._shares = shares / shares.sum()
        channels = len(split.seen[0].pixels)
        self._context = training.architecture(channels).context

    def draw(self, step: int, index: int) -> Sample:
        """Sample number `index` of a step."""
        said = self._training
        rng = np.random.default_rng((said.seed, step, index))
        labelled, wanted = self._targets[rng.choice(len(self._targets), p=self._shares)]
        centre = self._centre(wanted, rng)
        image, classes, weights = _planes(labelled, wanted, centre, said.network.dims)
        at = places(
            said.window, centre[-said.network.dims :], labelled.said.zoom, said.augment, rng
        )
        pixels = np.stack(
            [
                ndimage.map_coordinates(c, at, order=1, mode="mirror", output=np.float32)
                for c in image
            ]
        )
        cut = tuple(slice(context, -context or None) for context in self._context)
        inner = at[(slice(None), *cut)]
        drawn = [
            ndimage.map_coordinates(plane, inner, order=0, mode="mirror")
            for plane in (classes, weights)
        ]
        where = ", ".join(f"{a} {c:.0f}" for a, c in zip("zyx", centre, strict=True))
        name = f"sample {index} of step {step}, around {where} in {labelled.name}"
        return Sample(
            recoloured(pixels, said.augment, rng), drawn[0].astype(np.int64), drawn[1], name
        )

    def _centre(self, wanted: Target, rng: np.random.Generator) -> Floats:
        """The centre of a window, (z, y, x)."""
        shape = wanted.classes.shape
        if wanted.objects.size and rng.random() < self._training.augment.on_object:
            found = np.unravel_index(rng.choice(wanted.objects), shape)
            centre = np.array(found, dtype=np.float64)
            centre[1:] += rng.normal(0, OFF_CENTRE, 2)
        else:
            centre = rng.uniform(0, 1, 3) * (np.array(shape) - 1)
        return centre


def _planes(
    labelled: Labelled, wanted: Target, centre: Floats, dims: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image, classes and weights to draw from: for a 2D network, the plane of the centre."""
    if dims == 3:
        return labelled.pixels, wanted.classes, wanted.weights
    z = round(float(centre[0]))
    return labelled.pixels[:, z], wanted.classes[z], wanted.weights[z]


def places(
    window: Sizes,
    centre: Floats,
    zoom: tuple[float, float],
    augment: Augment,
    rng: np.random.Generator,
) -> Floats:
    """Where in the image each pixel of a window lies: (dims, *window), in pixels.

    Planes are turned in themselves and bent in themselves, since z is rarely sampled as y and x
    are; z is mirrored, and magnified with them.
    """
    magnified = math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1])))
    angle = rng.uniform(0, 2 * math.pi) if augment.turn else 0.0
    mirrored = rng.choice([-1, 1], len(window)) if augment.turn else np.ones(len(window))
    axes = [
        (np.arange(size) - (size - 1) / 2) * sign / magnified
        for size, sign in zip(window, mirrored, strict=True)
    ]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    y, x = at[-2].copy(), at[-1].copy()
    at[-2] = math.cos(angle) * y - math.sin(angle) * x
    at[-1] = math.sin(angle) * y + math.cos(angle) * x
    at += np.reshape(centre, (-1,) + (1,) * len(window))
    if augment.elastic:
        at[-2:] += bend(window, augment, rng)
    return at


def bend(window: Sizes, augment: Augment, rng: np.random.Generator) -> Floats:
    """Displacements in y and x (2, *window): normal on a coarse grid, cubic splines between."""
    coarse = (augment.elastic_grid,) * len(window)
    field: Floats = rng.normal(0, augment.elastic, (2, *coarse))
    for size in window:  # each product moves the axis that it interpolates to the end
        field = np.tensordot(field, _splines(augment.elastic_grid, size), axes=(1, 1))
    return field


@lru_cache
def _splines(points: int, size: int) -> Floats:
    """The cubic splines (size, points) that interpolate `points` evenly spaced values."""
    at = np.linspace(0, points - 1, size)
    columns = [ndimage.map_coordinates(row, at[None], mode="mirror") for row in np.eye(points)]
    return np.stack(columns, axis=1)


def recoloured(
    window: NDArray[np.float32], augment: Augment, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A window in another light, or stained otherwise, and sharper, softer or noisier."""
    pixels: Floats = window
    if augment.stain:
        light = np.clip(pixels, 0, 1)
        coloured = _gamma(restained(light, augment.stain, rng), augment, rng)
        lamp = rng.uniform(1 - LAMP, 1 + LAMP / 2, (len(pixels), *(1,) * (pixels.ndim - 1)))
        pixels = coloured * lamp
    else:
        pixels = _gamma(pixels, augment, rng)
    gain = math.exp(rng.uniform(-augment.gain, augment.gain))
    pixels = pixels * gain + rng.uniform(-augment.offset, augment.offset)
    pixels = _blur_and_noise(pixels, augment, rng)
    if augment.saturation and rng.random() < augment.saturation:
        pixels = saturated(pixels, rng)
    return pixels.astype(np.float32)


def _gamma(pixels: Floats, augment: Augment, rng: np.random.Generator) -> Floats:
    """Negative values, which are normalised darkness, keep their sign."""
    power = math.exp(rng.uniform(-augment.gamma, augment.gamma))
    changed: Floats = np.sign(pixels) * np.abs(pixels) ** power
    return changed


def restained(light: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Vary how much of each dye a window (3, ...) of transmitted light holds, and its hue."""
    density = -np.log(np.clip(light, DARKEST, None)).reshape(3, -1)
    dyes = DYES + rng.normal(0, DYE_DEVIATION, DYES.shape)
    amounts = np.linalg.inv(DYES.T) @ density
    amounts *= np.exp(rng.uniform(-amount, amount, (3, 1)))
    stained: Floats = np.clip(np.exp(-(dyes.T @ amounts)).reshape(light.shape), 0, 1)
    return stained


def saturated(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Cut off a window's brightest values, as in an overexposed image: what is white is flat.

    The level becomes 1, what normalisation makes of the brightest values of an image.
    """
    bright = float(np.percentile(pixels, BRIGHT))
    level = rng.uniform(*SATURATED) * bright
    return np.minimum(pixels / level, 1) if bright > DIMMEST else pixels


def _blur_and_noise(pixels: Floats, augment: Augment, rng: np.random.Generator) -> Floats:
    """Blur one window in four, sharpen one in eight, and add noise to every other."""
    kind, flat = rng.random(), (0,) * (pixels.ndim - 2)
    if augment.blur and kind < 1 / 4:
        sigma = rng.uniform(0.3, 1) * augment.blur
        pixels = ndimage.gaussian_filter(pixels, (*flat, sigma, sigma))
    elif augment.blur and kind < 3 / 8:
        soft = ndimage.gaussian_filter(pixels, (*flat, 1, 1))
        pixels = pixels + rng.uniform(0.2, 0.8) * (pixels - soft)
    if augment.noise and rng.random() < 1 / 2:
        deviation = rng.uniform(0, augment.noise)
        pixels = pixels + deviation * rng.standard_normal(pixels.shape, dtype=np.float32)
    return pixels
