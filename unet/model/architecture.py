"""What a U-Net does to sizes, in integers: so that tiling can be planned without torch.

A U-Net of valid convolutions is a chain of steps that each shorten, halve or double an axis. From
their kernels and pools alone follow, per axis,

    stride   the product of the pools: the net commutes only with shifts that are multiples of it
    context  how many pixels of input an output pixel sees to each side
    legal    the input sizes for which every pool divides its input
    halo     what a window reads around the core it keeps

For the network of Ronneberger, Fischer & Brox 2015 (https://arxiv.org/abs/1505.04597):

    |<------------------------- window 572 ------------------------->|
    |<- context 92 ->|<----------- output 388 ------->|<- context 92 ->|
                     |2|<-------- core 384 ------->|2|
    |<---- halo 94 --->|                             |<--- halo 94 --->|

388 is no multiple of the stride 16. Windows 388 px apart would see the image at different pooling
phases and disagree where they meet, so 2 px on each side are computed and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unet.errors import ModelError, excerpt

Sizes = tuple[int, ...]
PerLevel = int | Sequence[int] | Sequence[Sequence[int]]

FLOAT32_BYTES = 4
MOST_CHANNELS = 1 << 16
MOST_LEVELS = 16  # which halve an image of 65,536 pixels to one
MOST_PIXELS = 1 << 10  # of a kernel or a pool


@dataclass(frozen=True)
class Architecture:
    """The numbers that define one U-Net; defaults are the network of 2015.

    in_channels, classes  channels of the image, channels of the result
    width                 channels of the first level, doubled at each level below
    kernels               per level from the top, per axis: the odd size of both convolutions
    pools                 per level but the lowest, per axis: 2, or 1 where an axis is not pooled

    `kernels` has one entry more than `pools`; each entry has one number per axis (2 or 3 axes).
    Build it with `Architecture.of`, which accepts short forms.
    """

    in_channels: int
    classes: int
    width: int
    kernels: tuple[Sizes, ...]
    pools: tuple[Sizes, ...]

    @classmethod
    def of(
        cls,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 64,
        depth: int = 4,
        dims: int = 2,
        kernel: PerLevel = 3,
        pool: PerLevel = 2,
    ) -> Architecture:
        """Spell out short forms: one number for all, one per axis, or one per axis and level.

        Raises ModelError where the numbers define no network.
        """
        if not isinstance(dims, int) or dims not in (2, 3):
            raise ModelError(f"Expected a network of 2 or 3 dimensions, got dims: {dims!r}.")
        for name, value, least, most in (
            ("in_channels", in_channels, 1, MOST_CHANNELS),
            ("classes", classes, 2, MOST_CHANNELS),
            ("width", width, 1, MOST_CHANNELS),
            ("depth", depth, 1, MOST_LEVELS),
        ):
            if not isinstance(value, int) or not least <= value <= most:
                raise ModelError(
                    f"Expected {name} of at least {least}, at most {most}, as a whole number, got "
                    f"{excerpt(repr(value))}."
                )
        kernels = _per_level("kernel", kernel, depth + 1, dims)
        pools = _per_level("pool", pool, depth, dims)
        if any(k % 2 == 0 for level in kernels for k in level):
            raise ModelError(
                f"Expected odd kernel sizes, got {excerpt(kernel)}: an even kernel has no centre, "
                f"and would shift the result by half a pixel. Choose the next odd size."
            )
        return cls(in_channels, classes, width, kernels, pools)

    @property
    def dims(self) -> int:
        """Spatial axes: 2 for (y, x), 3 for (z, y, x)."""
        return len(self.kernels[0])

    @property
    def depth(self) -> int:
        """How many times the image is pooled."""
        return len(self.pools)

    @property
    def stride(self) -> Sizes:
        """Per axis, the network commutes with shifts by multiples of this (16)."""
        return tuple(math.prod(level) for level in zip(*self.pools, strict=True))

    @property
    def loss(self) -> Sizes:
        """Per axis, how much smaller the output is than the input (184)."""
        return tuple(self._loss(axis) for axis in range(self.dims))

    @property
    def context(self) -> Sizes:
        """Per axis, the pixels of input that an output pixel sees to each side (92)."""
        return tuple(loss // 2 for loss in self.loss)

    @property
    def halo(self) -> tuple[tuple[int, int], ...]:
        """Per axis, what a window reads before and after its core (94, 94).

        The output of every legal window is a multiple of the stride plus one constant rest. Half
        of that rest is cut from each side, so that cores can lie on the lattice.
        """
        halos = []
        for axis, (loss, stride) in enumerate(zip(self.loss, self.stride, strict=True)):
            rest = (self._phase(axis) - loss) % stride
            before = loss // 2 + rest // 2
            halos.append((before, loss + rest - before))
        return tuple(halos)

    def window(self, core: Sequence[int]) -> Sizes:
        """The window that predicts this core; the core is a multiple of the stride."""
        return tuple(
            size + before + after for size, (before, after) in zip(core, self.halo, strict=True)
        )

    def output(self, window: Sequence[int]) -> Sizes:
        """The output size of a legal window.

        Raises ModelError, with the nearest legal sizes, where a pool would not divide its input.
        """
        for axis, size in enumerate(window):
            if not self._is_legal(size, axis):
                smaller, larger = self.nearest_legal(size, axis)
                near = f"{larger}" if smaller is None else f"{smaller} and {larger}"
                raise ModelError(
                    f"Expected an input size that this network can pool evenly, got {size} on "
                    f"axis {'zyx'[3 - self.dims + axis]}; the nearest legal sizes are {near}."
                )
        return tuple(size - loss for size, loss in zip(window, self.loss, strict=True))

    def nearest_legal(self, size: int, axis: int) -> tuple[int | None, int]:
        """The legal sizes next to `size`: the largest not above it (if any), the smallest above."""
        stride, phase = self.stride[axis], self._phase(axis)
        smallest = self.loss[axis] + 1
        smallest += (phase - smallest) % stride
        if size < smallest:
            return None, smallest
        below = size - (size - phase) % stride
        return below, below + stride

    def flop(self, window: Sequence[int]) -> int:
        """Floating-point operations of one window, a multiply-add counted as two."""
        return sum(layer.flop for layer in self._layers(window))

    def peak_bytes(self, window: Sequence[int]) -> int:
        """The most float32 bytes of activations in memory at once, in one window's forward pass.

        At each step these are the skip tensors so far, the step's input, its output, and one more
        output: for what the convolution library reorders, or for the joined skip tensor.
        """
        return max(layer.alive_values for layer in self._layers(window)) * FLOAT32_BYTES

    def training_bytes(self, window: Sequence[int]) -> int:
        """About how many float32 bytes of activations training on one window takes.

        The input of every convolution stays in memory for its gradient. In the backward pass the
        largest layer also needs its output and the gradient of that.
        """
        layers = list(self._layers(window))
        inputs = sum(layer.input_values for layer in layers)
        largest_output = max(layer.output_values for layer in layers)
        return (inputs + 3 * largest_output) * FLOAT32_BYTES

    @property
    def parameters(self) -> int:
        """How many weights and biases there are (31,030,658 for the network of 2015)."""
        return sum(layer.parameters for layer in self._layers(self._smallest()))

    def _smallest(self) -> Sizes:
        return tuple(self.nearest_legal(1, axis)[1] for axis in range(self.dims))

    def _loss(self, axis: int) -> int:
        kernels = [level[axis] for level in self.kernels]
        loss = 2 * (kernels[-1] - 1)
        for kernel, pool in zip(reversed(kernels[:-1]), reversed(self.pools), strict=True):
            loss = 4 * (kernel - 1) + pool[axis] * loss
        return loss

    def _phase(self, axis: int) -> int:
        """Legal sizes are this number modulo the stride."""
        phase = 0
        for kernel, pool in zip(reversed(self.kernels[:-1]), reversed(self.pools), strict=True):
            phase = 2 * (kernel[axis] - 1) + pool[axis] * phase
        return phase

    def _is_legal(self, size: int, axis: int) -> bool:
        return size > self.loss[axis] and (size - self._phase(axis)) % self.stride[axis] == 0

    def _layers(self, window: Sequence[int]) -> Iterator[_Layer]:
        """Every convolution of the forward pass, with its numbers of values."""
        size: Sizes = tuple(window)
        channels, skip_values = self.in_channels, 0
        skips: list[int] = []
        for level, kernel in enumerate(self.kernels):
            out = self.width << level
            for _ in range(2):
                layer = _convolution(kernel, channels, out, size, skip_values)
                yield layer
                size, channels = layer.size, out
            if level < self.depth:
                skips.append(layer.output_values)
                skip_values += layer.output_values
                size = tuple(s // p for s, p in zip(size, self.pools[level], strict=True))
        for level in reversed(range(self.depth)):
            pool, kernel, out = self.pools[level], self.kernels[level], self.width << level
            up = _up_convolution(pool, channels, out, size, skip_values)
            yield up
            size, skip_values = up.size, skip_values - skips.pop()
            channels = 2 * out
            for _ in range(2):
                layer = _convolution(kernel, channels, out, size, skip_values)
                yield layer
                size, channels = layer.size, out
        yield _convolution((1,) * self.dims, channels, self.classes, size, skip_values)


@dataclass(frozen=True)
class _Layer:
    """One convolution: what it costs, and how many values it has.

    size           of its output, per axis
    input_values   that it reads, output_values that it writes
    alive_values   that are in memory while it runs
    """

    size: Sizes
    input_values: int
    output_values: int
    alive_values: int
    flop: int
    parameters: int


def _convolution(
    kernel: Sizes, in_channels: int, out_channels: int, size: Sizes, skip_values: int
) -> _Layer:
    after = tuple(s - k + 1 for s, k in zip(size, kernel, strict=True))
    input_values, output_values = in_channels * math.prod(size), out_channels * math.prod(after)
    weights = in_channels * out_channels * math.prod(kernel)
    return _Layer(
        size=after,
        input_values=input_values,
        output_values=output_values,
        alive_values=skip_values + input_values + 2 * output_values,
        flop=2 * weights * math.prod(after),
        parameters=weights + out_channels,
    )


def _up_convolution(
    pool: Sizes, in_channels: int, out_channels: int, size: Sizes, skip_values: int
) -> _Layer:
    after = tuple(s * p for s, p in zip(size, pool, strict=True))
    output_values = out_channels * math.prod(after)
    return _Layer(
        size=after,
        input_values=in_channels * math.prod(size),
        output_values=output_values,
        # beside the skip tensors: the output, and the output joined with as large a skip tensor
        alive_values=skip_values + 3 * output_values,
        flop=2 * in_channels * out_channels * math.prod(after),
        parameters=in_channels * out_channels * math.prod(pool) + out_channels,
    )


def _per_level(name: str, value: PerLevel, levels: int, dims: int) -> tuple[Sizes, ...]:
    """Spell out `value` as one tuple of `dims` positive integers for each of `levels`."""
    if isinstance(value, int):
        rows: list[Sizes] = [(value,) * dims] * levels
    else:
        items = list(value) if isinstance(value, Sequence) else []
        flat = tuple(item for item in items if isinstance(item, int))
        nested = [tuple(item) for item in items if isinstance(item, Sequence)]
        rows = nested if nested and not flat else [flat] * levels
    if len(rows) != levels or not all(
        len(row) == dims and all(isinstance(n, int) and 1 <= n <= MOST_PIXELS for n in row)
        for row in rows
    ):
        raise ModelError(
            f"Expected {name} as one whole number, {dims} numbers (one per axis), or {levels} "
            f"rows of {dims} numbers (one row per level), all at least 1 and at most "
            f"{MOST_PIXELS}; got {excerpt(value)}."
        )
    return tuple(rows)
