"""Streams that are closed, full or left by their reader, and a current directory that is gone."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Outcome, Tiny
from tests.conftest import UCLLM, cli_environment

COMMANDS = [
    ("doctor", "--only", "machine.disk"),
    ("doctor", "--only", "machine.disk", "--json"),
    ("setup", "--dry-run"),
    ("undo",),
    ("train", "--help"),
    ("--version",),
]


def _shell(tmp_path: Path, before: str, words: Sequence[str], streams: str) -> Outcome:
    """A command line as a shell starts it: what is done before, and what its streams are."""
    script = f"{before}{shlex.join([*UCLLM, *words])} {streams}"
    env = {**cli_environment(tmp_path), "UCLLM_WORKSPACE": str(tmp_path / "ws"), "UCLLM_PROFILE": "cpu"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("streams", "why"), [(">&-", "It is closed."), (">/dev/full", "No space left on device"), (">&- <&-", "closed")]
)
def test_an_output_that_takes_nothing_is_one_clear_error(
    tmp_path: Path, words: tuple[str, ...], streams: str, why: str
) -> None:
    seen = _shell(tmp_path, "", words, streams)
    assert (seen.code, seen.out) == (2, "")
    error, hint = seen.err.splitlines()
    assert error.startswith("error: Cannot write to standard output.")
    assert why in error
    assert hint.startswith("hint: ")


def test_the_errors_of_a_command_are_told_although_its_output_is_lost(tmp_path: Path) -> None:
    """As when a stage of training fails while the disk that takes the output is full."""
    code = (
        "import bootstrap.cli.undo as undo\n"
        "from bootstrap.cli.base import Report, finish\n"
        "from pipeline.errors import Problem\n"
        "failed = Report('undo', 'failed', 12, {}, (Problem('x', 'The stage failed.'),))\n"
        "undo.command.callback = lambda **_values: finish(failed, as_json=False, text=lambda _data: 'a summary')\n"
        "from bootstrap.cli import main\nmain()"
    )
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "undo"],
            env=cli_environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    first, second, _hint = done.stderr.splitlines()
    assert first == "error: The stage failed."
    assert second.startswith("error: Cannot write to standard output.")


def test_nothing_is_done_when_nobody_could_see_it(empty: Tiny) -> None:
    child = empty.start("setup", "--profile", "tiny", "--yes", preexec_fn=lambda: os.close(1))
    err = child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert "It is closed." in err
    assert not empty.workspace.exists()


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "2>&- <&-"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_a_standard_error_commands_work(tmp_path: Path, words: tuple[str, ...], streams: str) -> None:
    seen = _shell(tmp_path, "", words, streams)
    assert (seen.code, seen.err) == (0, "")
    assert seen.out == _shell(tmp_path, "", words, "").out or words[0] in ("doctor", "setup"), "but for times and sizes"
    assert seen.out


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_mistake_is_exit_2_also_when_nobody_can_be_told(tmp_path: Path, streams: str) -> None:
    assert _shell(tmp_path, "", ["docter"], streams).code == 2


@pytest.mark.parametrize("words", [("train", "--help"), ("--help",), ("undo",)], ids=" ".join)
def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path: Path, words: tuple[str, ...]) -> None:
    seen = _shell(tmp_path, "", words, "| true; exit ${PIPESTATUS[0]}")
    assert (seen.code, seen.err) == (0, "")


def test_a_setup_without_a_standard_input_or_error_writes_into_no_file(empty: Tiny) -> None:
    """A descriptor that the caller closed must not become a file of ours, which children would print into."""

    def close() -> None:
        os.close(0)
        os.close(2)

    child = empty.start("setup", "--profile", "tiny", "--yes", "--json", preexec_fn=close)
    out = child.communicate(timeout=240)[0]
    assert child.returncode == 0
    assert json.loads(out)["status"] == "ok"
    assert (empty.workspace / ".ucllm" / "lock").read_text(encoding="ascii") == str(child.pid)
    assert {entry["status"] for entry in empty.journal()} == {"started", "done", "made"}


@pytest.mark.parametrize("words", [("doctor",), ("setup", "--dry-run"), ("setup", "--yes"), ("undo",)], ids=" ".join)
@pytest.mark.parametrize("named", [True, False], ids=["workspace named", "workspace not named"])
def test_a_current_directory_that_is_gone_is_said(tmp_path: Path, words: tuple[str, ...], named: bool) -> None:
    before = "mkdir gone; cd gone; rmdir ../gone; " + ("" if named else "unset UCLLM_WORKSPACE; ")
    seen = _shell(tmp_path, before, words, "")
    assert (seen.code, seen.out) == (2, "")
    error, hint = seen.err.splitlines()
    assert error == "error: The current directory does not exist any more."
    assert "`cd`" in hint
    assert not (tmp_path / "ws").exists()
    seen = _shell(tmp_path, before, ("train", "tokenizer", "--dry-run"), "")
    assert (seen.code, seen.err.splitlines()[0]) == (2, error)


def test_help_needs_no_current_directory(tmp_path: Path) -> None:
    assert _shell(tmp_path, "mkdir gone; cd gone; rmdir ../gone; ", ["train", "--help"], "").code == 0


def test_a_workspace_whose_name_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are a good name for a folder; they are shown escaped, and JSON stays JSON."""
    workspace = os.fsdecode(bytes(tmp_path) + b"/ws\xff")
    words = ("doctor", "--only", "machine.disk", "--workspace", workspace)
    assert "ws\\udcff" in _shell(tmp_path, "", words, "").out
    saved = tmp_path / "facts.json"
    seen = _shell(tmp_path, "", (*words, "--json", "--save-facts", str(saved)), "")
    assert (seen.code, seen.json["data"]["workspace"]) == (0, workspace)
    assert json.loads(saved.read_text(encoding="utf-8"))["workspace"].endswith("/ws?")
    assert "another version" not in _shell(tmp_path, "", ("doctor", "--facts", str(saved)), "").err
