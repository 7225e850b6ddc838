"""The journal of fixes when its file is odd: `ucllm undo` undoes what can be read, and says what cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Tiny

ODD = [
    '{"fix":1,"status":"moved"}',
    '{"fix":1,"status":"moved","from":7,"to":"/tmp"}',
    '{"fix":1,"status":"moved","from":"a\\u0000b","to":"/tmp"}',
    '{"fix":1,"status":"moved","from":"\\ud800","to":"/tmp"}',
    '{"fix":1,"status":"moved","from":"/nowhere","to":null}',
    '{"fix":1,"status":"mode","path":"/tmp/q","from":"zz"}',
    '{"fix":1,"status":"mode","path":"/","from":"7777777777777"}',
    '{"fix":1,"status":"mode","path":"/","from":493}',
    '{"fix":1,"status":"mode","from":"0755"}',
    '{"fix":"x"}',
    '{"fix":null}',
    '{"fix":true,"status":"undone"}',
    '{"fix":-3}',
    '{"fix":1.5}',
    '{"fix":[1]}',
    "{}",
    "[1]",
    "null",
    "1e999",
    "[" * 100_000,
    '{"fix":1,"sta',
    "\x00\xff",
]


def _journal(tmp_path: Path, *lines: str) -> Journal:
    journal = Journal(Workspace(tmp_path / "ws"))
    journal.path.parent.mkdir(parents=True)
    journal.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return journal


def _moved(journal: Journal, name: str = "file") -> Path:
    """A file that fix 1 moved aside, written into the journal."""
    path = journal.workspace.root / name
    path.write_text("what was there", encoding="utf-8")
    Recorder(journal, 1, "env.python", print).move_aside(path)
    return path


@pytest.mark.parametrize("line", ODD, ids=lambda line: line[:60].replace("\x00", "0"))
def test_an_odd_line_is_passed_over(tmp_path: Path, line: str) -> None:
    journal = _journal(tmp_path, line)
    path = _moved(journal)
    journal.path.write_text(journal.path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert journal.next_fix() == 2
    (fix,) = fixes(journal)
    assert fix.can_be_undone
    assert [to for _from, to in undo(journal, fix)] == [path]
    assert path.read_text(encoding="utf-8") == "what was there"
    assert not fixes(journal)[0].can_be_undone


@pytest.mark.parametrize("args", [(), ("--list",), ("1",)], ids=["undo", "list", "by number"])
def test_undo_among_odd_lines(empty: Tiny, args: tuple[str, ...]) -> None:
    journal = _journal(empty.root, *ODD)
    path = _moved(journal)
    seen = empty("undo", *args, "--json")
    assert seen.code == 0
    if args == ("--list",):
        assert [item["requirement"] for item in seen.json["data"]["fixes"]] == ["env.python"]
        assert "env.python" in empty("undo", "--list").out
    else:
        assert seen.json["data"]["put_back"][0]["to"] == str(path)
        assert path.exists()


@pytest.mark.parametrize("args", [(), ("--list",), ("1",)], ids=["undo", "list", "by number"])
def test_undo_of_nothing_but_odd_lines(empty: Tiny, args: tuple[str, ...]) -> None:
    _journal(empty.root, *ODD)
    seen = empty("undo", *args, "--json")
    assert seen.code == (2 if args == ("1",) else 0)
    assert [item["code"] for item in seen.json["errors"]] == (["undo.unknown"] if args == ("1",) else [])


def _journal_is_a_folder(workspace: Path) -> None:
    (workspace / ".ucllm" / "journal.jsonl").mkdir(parents=True)


def _state_is_a_file(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / ".ucllm").touch()


@pytest.mark.parametrize("fault", [_journal_is_a_folder, _state_is_a_file])
@pytest.mark.parametrize("args", [(), ("--list",), ("1",)], ids=["undo", "list", "by number"])
def test_a_journal_that_cannot_be_read_is_said(empty: Tiny, fault: Any, args: tuple[str, ...]) -> None:
    fault(empty.workspace)
    seen = empty("undo", *args, "--json")
    assert seen.code == 2
    (error,) = seen.json["errors"]
    assert error["code"] == "journal.unreadable"
    assert str(empty.workspace / ".ucllm" / "journal.jsonl") in error["message"]
    assert "ls -ld" in error["hint"]


@pytest.mark.parametrize("odd", [True, False], ids=["odd lines", "a folder"])
def test_fixing_with_an_odd_journal(healthy: Tiny, odd: bool) -> None:
    python = healthy.env / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    journal = healthy.workspace / ".ucllm" / "journal.jsonl"
    journal.unlink()
    if odd:
        journal.write_text("".join(line + "\n" for line in ODD), encoding="utf-8")
    else:
        journal.mkdir()
    seen = healthy.doctor("--fix", "--yes")
    if odd:
        assert seen.code == 0
        assert healthy("undo", "--json").json["data"]["requirement"] == "env.python"
    else:
        assert seen.code == 4
        assert [item["code"] for item in seen.json["errors"]] == ["journal.unreadable"]
        assert python.is_symlink(), "nothing was changed that could not be written down"


def test_what_cannot_be_put_back_is_said(empty: Tiny) -> None:
    path = _moved(_journal(empty.root), "folder")
    (empty.workspace / "folder").mkdir()
    (empty.workspace / ".ucllm" / "backups").rename(empty.root / "kept")
    (kept,) = (empty.root / "kept").iterdir()
    journal = Journal(Workspace(empty.workspace))
    inside = empty.workspace / "a file"
    inside.touch()
    journal.write(fix=2, requirement="x", status="moved", **{"from": str(inside / path.name), "to": str(kept)})
    seen = empty("undo", "2", "--json")
    assert seen.code == 2
    (error,) = seen.json["errors"]
    assert error["code"] == "undo.failed"
    assert str(inside) in error["message"]
    assert kept.exists()


def test_a_line_after_half_a_line_is_not_lost(tmp_path: Path) -> None:
    """A power cut in the middle of a line: the next fix is still found."""
    journal = _journal(tmp_path)
    journal.path.write_text('{"fix": 1, "status": "sta', encoding="utf-8")
    path = _moved(journal)
    assert [fix.moves[0][0] for fix in fixes(journal)] == [path]


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\nb", "学習", os.fsdecode(b"\xff")])
def test_every_name_of_a_file_can_be_undone(tmp_path: Path, name: str) -> None:
    journal = _journal(tmp_path)
    path = _moved(journal, name)
    (fix,) = fixes(journal)
    assert undo(journal, fix) != []
    assert path.is_file()
