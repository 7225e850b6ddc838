"""What all tests share: where the repository, the environment of profile ``cpu`` and ``../shared`` are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"


def environment_python() -> Path:
    """The Python of the workspace that `make test` set up; ``UCLLM_TEST_PYTHON`` names another."""
    named = os.environ.get("UCLLM_TEST_PYTHON")
    return Path(named).absolute() if named else REPOSITORY / "workspace" / ".venv" / "bin" / "python"


@pytest.fixture(scope="session")
def env_python() -> Path:
    """The Python of an environment of profile ``cpu``; skips without one."""
    python = environment_python()
    if not python.exists():
        pytest.skip(f"no environment at {python}: run `make test`, or set UCLLM_TEST_PYTHON")
    return python


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real logs, launches and oracle data; it is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests read English whatever the machine speaks, and see none of the user's ucllm settings."""
    monkeypatch.setenv("UCLLM_LANG", "en")
    for name in ("UCLLM_WORKSPACE", "UCLLM_PROFILE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine was not asked to do, with the reason."""
    for marker, variable in (("network", "UCLLM_TEST_NETWORK"), ("slow", "UCLLM_TEST_SLOW")):
        if os.environ.get(variable) != "1":
            skip = pytest.mark.skip(reason=f"{marker}: set {variable}=1")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


def cli_environment(home: Path) -> dict[str, str]:
    """The environment of a child process that must not touch the user's home."""
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


#: How tests call the command line: the same code as the console script.
UCLLM = (sys.executable, "-m", "bootstrap")
