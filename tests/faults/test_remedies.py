"""The commands that are shown are the ones that help: typed by hand they do what `--fix` does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.bootstrap import test_doctor as broken
from tests.faults.conftest import Yard
from tests.faults.test_real import FAULTS, Fault


def _no_pip_command(yard: Yard) -> None:
    for path in (yard.env / "bin").glob("pip*"):
        path.unlink()


def _bystander(yard: Yard) -> None:
    FAULTS["pip of another Python"].do(yard)
    (yard.env / "bin" / "pip-compile").write_text("#!/bin/sh\n", encoding="utf-8")


BROKEN = {
    **{name: fault for name, fault in FAULTS.items() if fault.id in ("env.python", "env.pip")},
    "no command pip": Fault("env.pip", _no_pip_command),
    "a command that is not pip's own": Fault("env.pip", _bystander),
    "pip's package is gone": Fault("env.python", broken._pip_without_its_package),
}


def typed(yard: Yard, commands: list[str]) -> None:
    """Type the commands into a shell; each must do."""
    home = yard.root / "home"
    env = {**os.environ, **yard.variables, "HOME": str(home), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(["sh", "-ec", "\n".join(commands)], env=env, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def shown(yard: Yard, finding: str) -> list[str]:
    """The commands of the finding's remedy, which are also those of the plan."""
    data = yard.doctor("--fix", "--dry-run").json["data"]
    (failing,) = [item for item in data["findings"] if item["id"] == finding]
    commands: list[str] = failing["remedy"]["commands"]
    assert [line for action in data["plan"] if action["requirement"] == finding for line in action["commands"]] == (
        commands
    )
    return commands


@pytest.mark.parametrize("name", BROKEN)
def test_shown_commands_help(yard: Yard, name: str) -> None:
    fault = BROKEN[name]
    # What was moved aside earlier, by hand too, stays whole.
    kept = [yard.workspace / ".ucllm" / "backups" / item / "kept" for item in (".venv", "pip")]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    fault.do(yard)
    typed(yard, shown(yard, fault.id))
    assert yard.doctor().statuses[fault.id] == "ok"
    found = sorted(path.parent.name for path in (yard.workspace / ".ucllm" / "backups").glob("*/kept"))
    assert len(found) == len(kept)
    if fault.do is _bystander:
        assert (yard.env / "bin" / "pip-compile").exists()


def test_shown_commands_help_where_nothing_was_moved_yet(yard: Yard) -> None:
    backups: Path = yard.workspace / ".ucllm" / "backups"
    assert not backups.exists()
    broken._a_file(yard)
    typed(yard, shown(yard, "env.python"))
    assert yard.doctor().statuses["env.python"] == "ok"
    assert (backups / ".venv").read_text(encoding="utf-8") == "mine"
