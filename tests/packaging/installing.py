"""What tests of the installed package share: the wheel, and virtual environments that it is installed into."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path) -> str:
    """Run a command without what this process would add to the paths of a Python; return what it prints."""
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, env=clean_environment()
    ).stdout


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def pins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned versions as constraints: a wheel that was built just now has no hash to be checked."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    path = tmp_path_factory.mktemp("pins") / "constraints.txt"
    path.write_text("\n".join(line.removesuffix(" \\") for line in lines if "==" in line and not line.startswith(" ")))
    return path


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory, wheel: Path, pins: Path) -> Path:
    """The Python of an environment with the base install."""
    return installed(tmp_path_factory.mktemp("light"), wheel, "", pins)


def installed(folder: Path, wheel: Path, extra: str, pins: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, f"{wheel}{extra}")
    return python
