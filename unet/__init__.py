"""Segment images that do not fit in memory with a U-Net, without a seam.

In a notebook:

    import unet
    model = unet.load_model("fluo-nuclei")
    probabilities = unet.predict(model, image)  # (classes, Y, X)

torch is imported with the first use of either, so that planning needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.inference import Model, load_model, predict

__all__ = ["Model", "load_model", "predict"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from unet import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'unet' has no attribute {name!r}")
