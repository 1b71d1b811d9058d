"""`python -m unet`: the example of the front page, run, and the shapes of the 2015 network."""

from __future__ import annotations

import sys

from unet.network.unet import UNet, shapes

EXAMPLE = """\
>>> import torch
>>> from unet import UNet
>>> model = UNet()
>>> model(torch.rand((1, 1, 572, 572))).shape
"""


def main() -> None:
    """Print the example with its result, and the shape after each step."""
    steps = shapes(UNet(), (572, 572))
    result = steps[-1].partition("(")[2]
    sys.stdout.write(f"{EXAMPLE}torch.Size([{result.rstrip(')')}])\n\n" + "\n".join(steps) + "\n")


if __name__ == "__main__":
    main()
