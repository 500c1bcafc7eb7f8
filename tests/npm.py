"""Install npm packages that only the tests need."""

import fcntl
import os
import subprocess
import tarfile
from pathlib import Path

from conftest import lack, need


def shared_folder(tmp_path_factory) -> Path:
    """Return a folder for packages that all xdist workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (folder / "npm").mkdir(exist_ok=True)
    return folder / "npm"


def unpack(packages: dict[str, str], folder: Path) -> Path:
    """Download each package into a subfolder of its name. Return `folder`.

    If several processes share the folder, the first downloads for all.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        missing = {
            name: version
            for name, version in packages.items()
            if not (folder / name).exists()
        }
        if missing:
            _download(missing, folder)
    return folder


def _download(packages: dict[str, str], folder: Path) -> None:
    names = [f"{name}@{version}" for name, version in packages.items()]
    _npm("pack", *names, folder=folder)
    for name, version in packages.items():
        stem = name.removeprefix("@").replace("/", "-")
        with tarfile.open(folder / f"{stem}-{version}.tgz") as files:
            # Python before 3.11.4 has no filters. Python 3.14 needs one.
            files.extraction_filter = lambda member, path: member
            files.extractall(folder / name)


def install(package: str, folder: Path) -> None:
    """Install a package for Node.js programs in `folder`."""
    _npm("install", package, "--ignore-scripts", "--no-audit", folder=folder)


def _npm(*arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [need("npm"), *arguments, "--prefer-offline", "--loglevel=error"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lack(f"needs the npm registry: {done.stderr}")
