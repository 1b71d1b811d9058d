"""Segment images that do not fit in memory with a U-Net, without a seam.

The public names, for a notebook or a script of your own:

    import torch
    from unet import UNet

    model = UNet()  # the network of Ronneberger, Fischer & Brox 2015
    model(torch.rand((1, 1, 572, 572))).shape  # (1, 2, 388, 388)

    from unet import Architecture

    model = UNet(Architecture.of(in_channels=3, width=16))  # another network

    import unet

    model = unet.load_model("fluo-nuclei")  # a model that comes along, or a model folder
    probabilities = unet.predict(model, image)  # (classes, Y, X), of an image in memory

Each is imported with its first use, since torch takes seconds and planning needs none of it. Images
that do not fit in memory are the work of the workflow: see README.md.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.model.architecture import Architecture as Architecture
    from unet.network.inference import Model as Model
    from unet.network.inference import load_model as load_model
    from unet.network.inference import predict as predict
    from unet.network.unet import UNet as UNet

    __version__: str

__all__ = ["Architecture", "Model", "UNet", "__version__", "load_model", "predict"]

_MODULES = {
    "Architecture": "unet.model.architecture",
    "Model": "unet.network.inference",
    "UNet": "unet.network.unet",
    "load_model": "unet.network.inference",
    "predict": "unet.network.inference",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        return version("unet-stitch")
    raise AttributeError(f"module 'unet' has no attribute {name!r}")
