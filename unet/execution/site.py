"""The settings of Dask that a site may have: whether Dask can be imported with them at all."""

from __future__ import annotations

from importlib import import_module

from unet.errors import ConfigError


def refuse_broken_settings() -> None:
    """Raise ConfigError where the site's settings of Dask cannot be read.

    Why before anything else: Dask reads them when it is imported, so that each stage would end in a
    traceback before it has a log.
    """
    try:
        import_module("distributed")
    except (KeyError, OSError, TypeError, ValueError) as error:
        why = " ".join(str(error).split()).removesuffix(".")
        raise ConfigError(
            f"Expected settings of Dask that it can read, but: {why}. Correct them: they are in "
            f"/etc/dask, in ~/.config/dask, in the folder that DASK_CONFIG names, or in variables "
            f"DASK_*."
        ) from error
