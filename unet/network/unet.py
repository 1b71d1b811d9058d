"""The network of Ronneberger, Fischer & Brox 2015 (https://arxiv.org/abs/1505.04597), in one file.

Why valid convolutions: no border value is ever invented inside the image, so an output pixel
depends on the pixels it sees and on nothing else, which is what makes tiling exact. The same class
does 2D and 3D, any width and depth, and anisotropic kernels and pools.

`python -m unet` prints the shapes of the 2015 network as they pass through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Never

import torch
from torch import Tensor, nn

from unet.errors import excerpt
from unet.model.architecture import Architecture

RONNEBERGER_2015 = Architecture.of()
FEW_VALUES = 1 << 16  # torch's own bound is 20,480


def by_onednn(x: Tensor) -> bool:
    """Whether a float32 tensor on the CPU is to be convolved by oneDNN, whatever its size.

    Left to itself torch takes another algorithm for tensors of few values, which sums in another
    order: the last bits of a pixel would then depend on the size of the window it was computed in.
    """
    return x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose result for a pixel has the same bits in every window."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C', Y', X')."""
        return _convolve(self, x) if by_onednn(x) else super().forward(x)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` whose result for a pixel has the same bits in every window."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        return _convolve(self, x) if by_onednn(x) else super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose result for a pixel has the same bits in every window."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, Y, X) -> (B, C', 2 Y, 2 X)."""
        return super().forward(_paired(x), output_size)[: len(x)]


class ConvTranspose3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` whose result for a pixel has the same bits in every window."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', 2 Z, 2 Y, 2 X)."""
        return super().forward(_paired(x), output_size)[: len(x)]


def _convolve(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    if layer.weight[0].numel() == 1 and layer.bias is not None:
        # One product a pixel: here oneDNN rounds once or twice, as the pixel lies in the tensor.
        per_channel = (-1, *(1,) * len(layer.kernel_size))
        return x * layer.weight.reshape(per_channel) + layer.bias.reshape(per_channel)
    none, one = (0,) * len(layer.kernel_size), (1,) * len(layer.kernel_size)
    return torch.mkldnn_convolution(x, layer.weight, layer.bias, none, one, one, 1)


def _paired(x: Tensor) -> Tensor:
    """A small tensor twice: torch leaves a batch of two to oneDNN, of whatever size."""
    is_small = by_onednn(x) and len(x) == 1 and x.numel() <= FEW_VALUES
    return x.expand(2, *x.shape[1:]) if is_small else x


CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: Conv2d, 3: Conv3d}
UP_CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: ConvTranspose2d, 3: ConvTranspose3d}
MAX_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def double_conv(inputs: int, outputs: int, kernel: Sequence[int]) -> nn.Sequential:
    """Two valid convolutions, each with a ReLU: every kernel shortens its axis by `kernel - 1`."""
    convolution = CONVOLUTION[len(kernel)]
    size = tuple(kernel)
    return nn.Sequential(
        convolution(inputs, outputs, size),
        nn.ReLU(inplace=True),
        convolution(outputs, outputs, size),
        nn.ReLU(inplace=True),
    )


def crop_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """The centre of `image` (B, C, [Z,] Y, X) that has the spatial `size`; a view, not a copy."""
    for axis, (have, want) in enumerate(zip(image.shape[2:], size, strict=True), start=2):
        image = image.narrow(axis, (have - want) // 2, want)
    return image


class UNet(nn.Module):
    """The U-Net: (B, in_channels, [Z,] Y, X) float -> (B, classes, [Z,] Y', X') logits.

    Without an architecture it is the network of 2015, with 31,030,658 parameters: 1 -> 64 -> 128 ->
    256 -> 512 -> 1024 channels and back, 572 x 572 -> 388 x 388. Any other network is made of its
    numbers: `UNet(Architecture.of(in_channels=3, classes=4))`. Input sizes that it cannot pool
    evenly raise ModelError with the nearest legal sizes; `architecture` knows them beforehand.
    Raises TypeError, with what to write, for numbers that are not in an architecture.
    """

    def __init__(
        self, architecture: Architecture = RONNEBERGER_2015, *others: Never, **numbers: Never
    ) -> None:
        _refuse_numbers(architecture, others, numbers)
        super().__init__()
        self.architecture = a = architecture
        widths = [a.width << level for level in range(a.depth + 1)]
        self.down = nn.ModuleList(
            double_conv(inputs, outputs, kernel)
            for (inputs, outputs), kernel in zip(
                pairwise([a.in_channels, *widths]), a.kernels, strict=True
            )
        )
        self.pool = nn.ModuleList(MAX_POOL[a.dims](pool) for pool in a.pools)
        self.up = nn.ModuleList(
            UP_CONVOLUTION[a.dims](2 * width, width, pool, stride=pool)
            for width, pool in zip(widths, a.pools, strict=False)
        )
        self.merge = nn.ModuleList(
            double_conv(2 * width, width, kernel)
            for width, kernel in zip(widths, a.kernels[:-1], strict=False)
        )
        self.head = CONVOLUTION[a.dims](a.width, a.classes, 1)
        self.apply(he_initialise)
        for parameter in self.parameters():  # the fastest layout, on CPUs and GPUs alike
            if parameter.dim() == a.dims + 2:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[a.dims])

    def forward(self, x: Tensor) -> Tensor:
        """Shapes at the line's end are those of the 2015 network on a 572 x 572 image.

        Layer by layer and not block by block: so a layer's input is let go of when the next begins.
        """
        self.architecture.output(x.shape[2:])  # refuses an illegal size in a sentence
        skips = []  #                                              (1,    1, 572, 572)
        for level, pool in enumerate(self.pool):
            for layer in self.down[level].children():
                x = layer(x)  #                                    (1,   64, 568, 568), ...
            skips.append(x)
            x = pool(x)  #                                         (1,   64, 284, 284), ...
        for layer in self.down[-1].children():
            x = layer(x)  #                                        (1, 1024,  28,  28)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)  #                               (1,  512,  56,  56), ...
            x = torch.cat([crop_image(skips.pop(), x.shape[2:]), x], dim=1)  # (1, 1024, 56, 56)
            for layer in self.merge[level].children():
                x = layer(x)  #                                    (1,  512,  52,  52), ...
        logits: Tensor = self.head(x)  #                           (1,    2, 388, 388)
        return logits


def _refuse_numbers(
    architecture: object, others: Sequence[object], numbers: Mapping[str, object]
) -> None:
    """Raise TypeError for `UNet(3)` and `UNet(in_channels=3)`, which other U-Nets accept."""
    if isinstance(architecture, Architecture) and not others and not numbers:
        return
    first = () if architecture is RONNEBERGER_2015 else (architecture,)
    got = ", ".join(
        [*map(repr, (*first, *others)), *(f"{name}={value!r}" for name, value in numbers.items())]
    )
    raise TypeError(
        f"Expected UNet() or UNet(architecture), got UNet({excerpt(got)}). Write for instance "
        f"UNet(Architecture.of(in_channels=3, classes=2)), with `from unet import Architecture`."
    )


def he_initialise(module: nn.Module) -> None:
    """Draw weights with standard deviation sqrt(2 / N), N the inputs of a neuron (section 3)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        neuron_inputs = module.in_channels * math.prod(module.kernel_size)
    elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        # Kernel and stride are equal, so each output pixel comes from one input pixel.
        neuron_inputs = module.in_channels
    else:
        return
    nn.init.normal_(module.weight, std=math.sqrt(2 / neuron_inputs))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def shapes(network: UNet, window: Sequence[int]) -> list[str]:
    """One line a step: its name and the shape (B, C, [Z,] Y, X) that leaves it."""
    lines: list[str] = []
    hooks = [
        (module[-1] if isinstance(module, nn.Sequential) else module).register_forward_hook(
            lambda _module, _inputs, output, name=name: lines.append(
                f"{name:8} {tuple(output.shape)}"
            )
        )
        for name, module in network.named_modules()
        if name.split(".")[0] in {"down", "pool", "up", "merge", "head"} and name.count(".") <= 1
        if not isinstance(module, nn.ModuleList)
    ]
    # On the meta device nothing is computed but shapes.
    image = torch.zeros((1, network.architecture.in_channels, *window), device="meta")
    with torch.inference_mode():
        network.to("meta")(image)
    for hook in hooks:
        hook.remove()
    return [f"{'image':8} {tuple(image.shape)}", *lines]
