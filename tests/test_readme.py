"""The READMEs: both say the same, and every command in them is run, as far as a dry run goes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.workspace import Workspace
from tests.conftest import REPOSITORY, UCLLM, cli_environment

ENGLISH, JAPANESE = REPOSITORY / "README.md", REPOSITORY / "README.ja.md"


def commands(readme: Path) -> list[str]:
    """The commands of all shell blocks, without comments and extra spaces."""
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def ucllm_commands() -> list[str]:
    return [re.sub(r"^\S*ucllm ", "", line) for line in commands(ENGLISH) if re.match(r"\S*ucllm ", line)]


def test_both_languages_give_the_same_commands() -> None:
    assert commands(ENGLISH) == commands(JAPANESE)
    assert len(commands(ENGLISH)) > 15


def test_both_languages_have_the_same_sections() -> None:
    english, japanese = (
        len(re.findall(r"^## ", path.read_text("utf-8"), re.MULTILINE)) for path in (ENGLISH, JAPANESE)
    )
    assert english == japanese


def test_the_two_commands_at_the_top_are_make_targets() -> None:
    assert commands(ENGLISH)[:2] == ["make train", "make test"]
    for line in commands(ENGLISH)[:2]:
        done = subprocess.run(
            ["make", "-n", line.split()[1]], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert "ucllm" in done.stdout or "pytest" in done.stdout


def test_ci_runs_the_test_command() -> None:
    assert "\nmake test\n" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


#: Commands of the section on what is wrong, and how they end where there is no environment yet.
DIAGNOSIS = {
    "doctor": 1,
    "doctor --profile gcp-2024.02": 1,
    "doctor --explain build.helpers": 0,
    "doctor --save-facts facts.json": 1,
    "doctor --facts facts.json": 1,
    "undo": 0,
}


def test_the_commands_for_when_something_is_wrong(tmp_path: Path) -> None:
    """In order: one writes the file that another reads."""
    listed = [line for line in ucllm_commands() if line in DIAGNOSIS]
    assert listed == list(DIAGNOSIS)
    for line in listed:
        done = subprocess.run(
            [*UCLLM, *shlex.split(line)], cwd=tmp_path, env=cli_environment(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == DIAGNOSIS[line], (line, done.stderr)
        assert done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json"]


#: Commands in the environment: what each prints where `deepspeed` only shows its words, and its exit code.
INSIDE = {
    "run -- deepspeed train.py --deepspeed": ("train.py --deepspeed\n", 5),
    "shell": ("", 2),  # there is no terminal
    "status": ("Workspace {workspace}\nProfile cpu\nNothing was done here yet. Start with `ucllm setup`.\n", 0),
}


def test_the_commands_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    deepspeed = tmp_path / ".venv" / "bin" / "deepspeed"
    deepspeed.write_text('#!/bin/sh\necho "$*"\nexit 5\n', encoding="utf-8")
    deepspeed.chmod(0o755)
    Workspace(tmp_path).record("cpu")
    assert [line for line in ucllm_commands() if line in INSIDE] == list(INSIDE)
    for line, (words, code) in INSIDE.items():
        done = subprocess.run(
            [*UCLLM, *shlex.split(line)],
            cwd=tmp_path,
            env=cli_environment(tmp_path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.returncode) == (words.format(workspace=tmp_path), code), (line, done.stderr)


OTHERS = [line for line in ucllm_commands() if line not in DIAGNOSIS and line not in INSIDE]


@pytest.mark.parametrize("line", OTHERS)
def test_every_ucllm_command_is_accepted(line: str, tmp_path: Path) -> None:
    recipe = REPOSITORY / "pipeline" / "recipes" / "botchan-tiny.toml"
    (tmp_path / "my.toml").write_bytes(recipe.read_bytes())
    (tmp_path / "hostfile").write_text("localhost slots=1\n", encoding="utf-8")
    words = shlex.split(line.replace("~", str(tmp_path)))
    if words[0] == "mirror":
        words.append("--help")  # what it does needs a network: tests/bootstrap/mirror
    else:
        words += ["--dry-run", "--profile", "cpu"]
    done = subprocess.run(
        [*UCLLM, *words],
        cwd=tmp_path,
        env=cli_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    # `doctor --fix --dry-run` exits as the check does, and here there is no environment yet.
    assert done.returncode == (1 if words[0] == "doctor" else 0), done.stderr
    assert done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostfile", "my.toml"], "a dry run writes nothing"
