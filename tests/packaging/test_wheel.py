"""What is installed: the light client alone, or with the worker; nothing else under the project's name."""

import json
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.installing import ROOT, clean_environment, installed, run

HEAVY = ["sqlalchemy", "arq", "asyncpg", "alembic", "typer", "rich", "uvloop"]


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


def test_the_base_install_is_the_light_client(light: Path) -> None:
    run(light, "-c", "import statewright; statewright.Client")
    assert importable(light, HEAVY) == []

    def statewright(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(light.with_name("statewright")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())

    told = statewright("--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "[worker]" in told.stdout
    assert statewright().stdout == told.stdout
    for command, extra in (("worker", "worker"), ("runs", "cli")):
        refused = statewright(command)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"pip install 'statewright[{extra}]'" in refused.stderr


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


@pytest.mark.parametrize("folder", ["protocol/checks", "examples/node"])
def test_every_package_of_node_is_pinned_and_no_package_host_is_named(folder: str) -> None:
    asked = json.loads((ROOT / folder / "package.json").read_text())
    lock = json.loads((ROOT / folder / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    for name, version in asked["dependencies"].items():
        assert packages[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in package and "resolved" not in package for package in packages.values())
