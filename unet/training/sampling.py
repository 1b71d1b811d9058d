"""Windows to train on: sample (seed, step, index) is a pure function of these three numbers.

So a resumed training sees the same samples as an uninterrupted one, several processes share the
samples of a step without messages, and any sample can be drawn once more to look at it.

A window is drawn by coordinates: for each of its pixels, where in the image it lies after rotation,
mirroring, magnification and the elastic deformation of the 2015 paper (random displacements on a
coarse grid, interpolated by cubic splines). Beyond the border the image is mirrored. The classes
are drawn for the network's output only, which is smaller than the window.

Why scipy.ndimage, not a library of augmentations: those that we know return image and label of
equal size, work for 2D or for volumes but not both, or resample for each step. One
`map_coordinates` for the whole geometry works in 2D and 3D, blurs once, and is the smaller
dependency.
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
from unet.training.config import AugmentOptions, Training
from unet.training.labelled import LabelledData, LabelledImage
from unet.training.targets import PixelTargets, make_targets

# Optical density of haematoxylin, eosin and the residual (Ruifrok & Johnston 2001), one per row.
DYES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DYES /= np.linalg.norm(DYES, axis=1, keepdims=True)
DYE_STD = 0.06  # of the colours of a dye, between laboratories and scanners
LAMP = 0.15  # largest relative change of the light of a channel
DARKEST = 1 / 255  # darker light is set to this before the logarithm
BRIGHT = 99.5  # percentile of a window's brightest values
SATURATION_LEVELS = (0.2, 0.9)  # shares of that value, above which values are cut off
DIMMEST = 0.1  # windows whose brightest values are darker show noise, not objects
CENTRE_STD = 30  # pixels, of the distance between a window's centre and the object in it

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sample:
    """One window.

    pixels   (C, [Z,] Y, X) float32
    classes  ([Z',] Y', X') int64, of the network's output
    weights  ([Z',] Y', X') float32
    name     its number and position, for messages
    """

    pixels: NDArray[np.float32]
    classes: NDArray[np.int64]
    weights: NDArray[np.float32]
    name: str


class Sampler:
    """Draws samples from the parts to train on."""

    def __init__(self, training: Training, data: LabelledData) -> None:
        self._training = training
        self._targets = [(part, make_targets(part, training)) for part in data.training_parts]
        shares = np.array([part.config.share for part in data.training_parts])
        self._shares = shares / shares.sum()
        channels = len(data.training_parts[0].pixels)
        self._context = training.architecture(channels).context

    def draw(self, step: int, index: int) -> Sample:
        """Sample number `index` of a step."""
        training = self._training
        rng = np.random.default_rng((training.seed, step, index))
        labelled, targets = self._targets[rng.choice(len(self._targets), p=self._shares)]
        centre = self._centre(targets, rng)
        dims = training.network.dims
        image, classes, weights = _planes(labelled, targets, centre, dims)
        coordinates = window_coordinates(
            training.window, centre[-dims:], labelled.config.zoom, training.augment, rng
        )
        pixels = np.stack(
            [
                ndimage.map_coordinates(
                    channel, coordinates, order=1, mode="mirror", output=np.float32
                )
                for channel in image
            ]
        )
        inside = tuple(slice(context, -context or None) for context in self._context)
        output_coordinates = coordinates[(slice(None), *inside)]
        output_classes, output_weights = (
            ndimage.map_coordinates(plane, output_coordinates, order=0, mode="mirror")
            for plane in (classes, weights)
        )
        position = ", ".join(f"{a} {c:.0f}" for a, c in zip("zyx", centre, strict=True))
        return Sample(
            pixels=vary_intensity(pixels, training.augment, rng),
            classes=output_classes.astype(np.int64),
            weights=output_weights,
            name=f"sample {index} of step {step}, around {position} in {labelled.name}",
        )

    def _centre(self, targets: PixelTargets, rng: np.random.Generator) -> Floats:
        """The centre of a window, (z, y, x)."""
        shape = targets.classes.shape
        if targets.objects.size and rng.random() < self._training.augment.on_object:
            pixel = np.unravel_index(rng.choice(targets.objects), shape)
            centre = np.array(pixel, dtype=np.float64)
            centre[1:] += rng.normal(0, CENTRE_STD, 2)
        else:
            centre = rng.uniform(0, 1, 3) * (np.array(shape) - 1)
        return centre


def _planes(
    labelled: LabelledImage, targets: PixelTargets, centre: Floats, dims: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image, classes and weights to draw from; for a 2D network, of the plane of the centre."""
    if dims == 3:
        return labelled.pixels, targets.classes, targets.weights
    z = round(float(centre[0]))
    return labelled.pixels[:, z], targets.classes[z], targets.weights[z]


def window_coordinates(
    window: Sizes,
    centre: Floats,
    zoom: tuple[float, float],
    augment: AugmentOptions,
    rng: np.random.Generator,
) -> Floats:
    """Where in the image each pixel of a window lies: (dims, *window), in pixels.

    Rotation and deformation stay within the plane, since the pixel size in z usually differs from
    that in y and x. All axes are mirrored and magnified.
    """
    magnification = math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1])))
    angle = rng.uniform(0, 2 * math.pi) if augment.turn else 0.0
    signs = rng.choice([-1, 1], len(window)) if augment.turn else np.ones(len(window))
    axes = [
        (np.arange(size) - (size - 1) / 2) * sign / magnification
        for size, sign in zip(window, signs, strict=True)
    ]
    coordinates = np.stack(np.meshgrid(*axes, indexing="ij"))
    y, x = coordinates[-2].copy(), coordinates[-1].copy()
    coordinates[-2] = math.cos(angle) * y - math.sin(angle) * x
    coordinates[-1] = math.sin(angle) * y + math.cos(angle) * x
    coordinates += np.reshape(centre, (-1,) + (1,) * len(window))
    if augment.elastic:
        coordinates[-2:] += elastic_displacement(window, augment, rng)
    return coordinates


def elastic_displacement(
    window: Sizes, augment: AugmentOptions, rng: np.random.Generator
) -> Floats:
    """Displacements in y and x (2, *window): normal on a coarse grid, cubic splines between."""
    grid = (augment.elastic_grid,) * len(window)
    field: Floats = rng.normal(0, augment.elastic, (2, *grid))
    for size in window:  # each product moves the axis that it interpolates to the end
        field = np.tensordot(field, _splines(augment.elastic_grid, size), axes=(1, 1))
    return field


@lru_cache
def _splines(points: int, size: int) -> Floats:
    """The cubic splines (size, points) that interpolate `points` evenly spaced values."""
    positions = np.linspace(0, points - 1, size)
    columns = [
        ndimage.map_coordinates(row, positions[None], mode="mirror") for row in np.eye(points)
    ]
    return np.stack(columns, axis=1)


def vary_intensity(
    window: NDArray[np.float32], augment: AugmentOptions, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A window with other brightness, contrast, stain, sharpness or noise."""
    pixels: Floats = window
    if augment.stain:
        light = np.clip(pixels, 0, 1)
        light = _gamma(vary_stain(light, augment.stain, rng), augment, rng)
        lamp = rng.uniform(1 - LAMP, 1 + LAMP / 2, (len(pixels), *(1,) * (pixels.ndim - 1)))
        pixels = light * lamp
    else:
        pixels = _gamma(pixels, augment, rng)
    gain = math.exp(rng.uniform(-augment.gain, augment.gain))
    pixels = pixels * gain + rng.uniform(-augment.offset, augment.offset)
    pixels = _blur_and_noise(pixels, augment, rng)
    if augment.saturation and rng.random() < augment.saturation:
        pixels = saturate(pixels, rng)
    return pixels.astype(np.float32)


def _gamma(pixels: Floats, augment: AugmentOptions, rng: np.random.Generator) -> Floats:
    """Another gamma; negative values, darker than the normalised black, keep their sign."""
    power = math.exp(rng.uniform(-augment.gamma, augment.gamma))
    result: Floats = np.sign(pixels) * np.abs(pixels) ** power
    return result


def vary_stain(light: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Vary amount and colour of each dye in a window (3, ...) of transmitted light."""
    density = -np.log(np.clip(light, DARKEST, None)).reshape(3, -1)
    dyes = DYES + rng.normal(0, DYE_STD, DYES.shape)
    amounts = np.linalg.inv(DYES.T) @ density
    amounts *= np.exp(rng.uniform(-amount, amount, (3, 1)))
    result: Floats = np.clip(np.exp(-(dyes.T @ amounts)).reshape(light.shape), 0, 1)
    return result


def saturate(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Cut off a window's brightest values, as in an overexposed image.

    The level of the cut becomes 1, as normalisation does it for the brightest values of an image.
    """
    bright = float(np.percentile(pixels, BRIGHT))
    level = rng.uniform(*SATURATION_LEVELS) * bright
    return np.minimum(pixels / level, 1) if bright > DIMMEST else pixels


def _blur_and_noise(pixels: Floats, augment: AugmentOptions, rng: np.random.Generator) -> Floats:
    """Blur one window in four, sharpen one in eight, add noise to one in two."""
    kind, no_sigmas = rng.random(), (0,) * (pixels.ndim - 2)
    if augment.blur and kind < 1 / 4:
        sigma = rng.uniform(0.3, 1) * augment.blur
        pixels = ndimage.gaussian_filter(pixels, (*no_sigmas, sigma, sigma))
    elif augment.blur and kind < 3 / 8:
        blurred = ndimage.gaussian_filter(pixels, (*no_sigmas, 1, 1))
        pixels = pixels + rng.uniform(0.2, 0.8) * (pixels - blurred)
    if augment.noise and rng.random() < 1 / 2:
        std = rng.uniform(0, augment.noise)
        pixels = pixels + std * rng.standard_normal(pixels.shape, dtype=np.float32)
    return pixels
