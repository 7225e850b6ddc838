"""Environments that are slow, that cannot be asked just now, or that lie elsewhere than where they were made."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest

from bootstrap import host, profiles
from bootstrap.facts import Facts, collect
from bootstrap.facts import env as env_facts
from bootstrap.findings import FAIL, UNKNOWN
from bootstrap.journal import Journal, Recorder
from bootstrap.profiles import Profile
from bootstrap.requirements import load
from bootstrap.runner import diagnose, plans
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Tiny, relocate

PROFILE = dataclasses.replace(profiles.load("cpu"), requirements=("env.python",))


def _facts(tiny: Tiny) -> Facts:
    return collect.collect(PROFILE, Workspace(tiny.workspace), ("machine", "env"))


def _not_judged(tiny: Tiny, why: str) -> None:
    facts, wanted = _facts(tiny), load(["env.python"])
    (found,) = diagnose(PROFILE, facts, wanted)
    assert found.status == UNKNOWN, found
    assert why in "\n".join(found.evidence)
    assert plans(PROFILE, facts, wanted, Workspace(tiny.workspace)) == []


def test_a_slow_environment_is_not_a_broken_one(healthy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    python = healthy.env / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(env_facts, "TIMEOUT_S", 0.3)
    _not_judged(healthy, "did not end in 0.3 s")


def test_a_machine_that_can_start_nothing_says_nothing(healthy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_args: object, **_more: object) -> object:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(host, "capture", capture)
    _not_judged(healthy, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("kind", ["gone", "no program", "may not be run", "a file in its place"])
def test_what_is_no_python_is_broken(healthy: Tiny, kind: str) -> None:
    python = healthy.env / "bin" / "python"
    python.unlink()
    if kind == "no program":
        python.write_bytes(b"\x7fELF nothing")
        python.chmod(0o755)
    elif kind == "may not be run":
        python.mkdir()
    elif kind == "a file in its place":
        shutil.rmtree(healthy.env)
        healthy.env.touch()
    (found,) = diagnose(PROFILE, _facts(healthy), load(["env.python"]))
    assert found.status == FAIL, found


def _fixed(profile: Profile, tiny: Tiny) -> None:
    workspace = Workspace(tiny.workspace)
    (wanted,) = load(["env.python"])
    assert wanted.plan
    for number, action in enumerate(wanted.plan(profile, _facts(tiny), workspace), 1):
        action.act(Recorder(Journal(workspace), number, wanted.id, lambda _text: None))


@pytest.mark.parametrize("stays", [True, False])
def test_a_copy_or_a_moved_one_names_another_place(healthy: Tiny, tmp_path: Path, stays: bool) -> None:
    """It answers, and every one of its commands starts the Python of the place where it was made, or none."""
    other = Tiny(tmp_path / "other")
    shutil.copytree(healthy.workspace, other.workspace, symlinks=True)
    if not stays:
        shutil.rmtree(healthy.env)
    (found,) = diagnose(PROFILE, _facts(other), load(["env.python"]))
    assert found.status == FAIL, found
    assert f"it was made in {healthy.env}" in "\n".join(found.evidence)
    _fixed(PROFILE, other)
    (found,) = diagnose(PROFILE, _facts(other), load(["env.python"]))
    assert found.status == "ok", found
    assert str(other.env) in (other.env / "bin" / "pip").read_text(encoding="utf-8")


def test_another_name_of_the_same_place_is_no_other_place(healthy: Tiny, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(healthy.root)
    (found,) = diagnose(PROFILE, _facts(Tiny(tmp_path / "name")), load(["env.python"]))
    assert found.status == "ok", found
    moved = tmp_path / "moved" / "ws"
    moved.parent.mkdir()
    healthy.workspace.rename(moved)
    healthy.workspace.symlink_to(moved)  # the old name still leads there
    (found,) = diagnose(PROFILE, _facts(Tiny(moved.parent)), load(["env.python"]))
    assert found.status == "ok", found


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('VIRTUAL_ENV="/a b/.venv"', "/a b/.venv"),  # 3.9
        ("    export VIRTUAL_ENV=/a/.venv", "/a/.venv"),  # 3.12
        ("        VIRTUAL_ENV=$(cygpath /a/.venv)\n        export VIRTUAL_ENV='/a b/.venv'", "/a b/.venv"),  # 3.13
        ('VIRTUAL_ENV="$(dirname "$0")"', ""),  # a relocatable one of uv's
        ('VIRTUAL_ENV="/a', ""),
        ("# no such line", ""),
    ],
)
def test_what_activate_says(tmp_path: Path, line: str, place: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text(f"{line}\nexport VIRTUAL_ENV\n", encoding="utf-8")
    assert env_facts.made_in(tmp_path) == place


def test_the_copies_that_tests_make_are_whole(healthy: Tiny, tmp_path: Path) -> None:
    other = Tiny(tmp_path / "other")
    shutil.copytree(healthy.workspace, other.workspace, symlinks=True)
    relocate(healthy.workspace, other)
    assert env_facts.read(other.env).state == "ready"
