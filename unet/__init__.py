"""Segment images that do not fit in memory with a U-Net, without a seam.

The public names, for a notebook or a script of your own:

    import torch
    from unet import UNet

    model = UNet()  # the network of Ronneberger, Fischer & Brox 2015
    model(torch.rand((1, 1, 572, 572))).shape  # (1, 2, 388, 388)

    import unet

    model = unet.load_model("fluo-nuclei")  # a model that comes along, or a model folder
    probabilities = unet.predict(model, image)  # (classes, Y, X), of an image in memory

Each is imported with its first use, since torch takes seconds and planning needs none of it. Images
that do not fit in memory are the work of the workflow: see README.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.network.inference import Model as Model
    from unet.network.inference import load_model as load_model
    from unet.network.inference import predict as predict
    from unet.network.unet import UNet as UNet

__all__ = ["Model", "UNet", "load_model", "predict"]

_MODULES = {
    "Model": "unet.network.inference",
    "UNet": "unet.network.unet",
    "load_model": "unet.network.inference",
    "predict": "unet.network.inference",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'unet' has no attribute {name!r}")
