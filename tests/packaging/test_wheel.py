"""What is installed: the light client alone, or with the worker; nothing else under the project's name."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
HEAVY = ["sqlalchemy", "arq", "asyncpg", "alembic", "typer", "rich", "uvloop"]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, cwd=cwd).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def pins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned versions as constraints: a wheel that was built just now has no hash to be checked."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    path = tmp_path_factory.mktemp("pins") / "constraints.txt"
    path.write_text("\n".join(line.removesuffix(" \\") for line in lines if "==" in line and not line.startswith(" ")))
    return path


def installed(folder: Path, wheel: Path, extra: str, pins: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, f"{wheel}{extra}")
    return python


def importable(python: Path, modules: list[str]) -> list[str]:
    script = f"import importlib.util as u; print(*[m for m in {modules!r} if u.find_spec(m)])"
    return run(python, "-c", script).split()


def test_the_wheel_contains_the_two_packages_and_nothing_else(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"statewright", "statewright_worker"}


def test_the_wheel_contains_types_and_migrations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"statewright/py.typed", "statewright_worker/py.typed"} <= names
    assert any(name.startswith("statewright_worker/storage/migrations/versions/0001") for name in names)


def test_the_base_install_is_the_light_client(wheel: Path, pins: Path, tmp_path: Path) -> None:
    python = installed(tmp_path / "light", wheel, "", pins)
    run(python, "-c", "import statewright; statewright.Client")
    assert importable(python, HEAVY) == []
    refused = subprocess.run([python.with_name("statewright")], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "pip install 'statewright[worker]'" in refused.stderr


def test_the_extra_adds_the_worker(wheel: Path, pins: Path, tmp_path: Path) -> None:
    python = installed(tmp_path / "worker", wheel, "[worker]", pins)
    assert importable(python, HEAVY) == HEAVY
    assert "worker" in run(python.with_name("statewright"), "--help")


def test_every_dependency_is_pinned_and_no_package_host_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.M))
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[requirement.name])
    assert "://" not in lock
