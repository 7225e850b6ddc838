"""`ucllm status`: what the journal knows, in words and as JSON; and `ucllm setup --only`, which makes a part."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import time
from typing import Any

import pytest

from tests.bootstrap.conftest import Tiny


def rows(tiny: Tiny) -> dict[str, dict[str, Any]]:
    seen = tiny("status", "--json")
    assert seen.code == 0
    return {row["requirement"]: row for row in seen.json["data"]["requirements"]}


def entry(tiny: Tiny, fix: object, status: str, **more: object) -> None:
    with (tiny.workspace / ".ucllm" / "journal.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": "2026-01-02T03:04:05+0000", "fix": fix, "status": status, **more}) + "\n")


def test_an_empty_workspace(empty: Tiny) -> None:
    seen = empty("status")
    assert seen.code == 0
    assert str(empty.workspace) in seen.out
    assert "Nothing was done here yet. Start with `ucllm setup`." in seen.out
    assert not empty.workspace.exists()


def test_what_setup_did(healthy: Tiny) -> None:
    found = rows(healthy)
    assert list(found) == ["env.python", "env.packages"]
    assert {row["state"] for row in found.values()} == {"done"}
    assert all(row["seconds"] > 0 and row["time"] and row["action"] and not row["log"] for row in found.values())
    data = healthy("status", "--json").json["data"]
    assert (data["profile"], data["mirror"]) == ("tiny", "")
    text = healthy("status").out
    assert "Profile tiny" in text
    assert "env.packages  done" in text


def test_a_failure_is_shown_with_its_log(healthy: Tiny) -> None:
    shutil.rmtree(healthy.root / "wheels")
    shutil.rmtree(next(healthy.site.glob("alpha-*")))
    assert healthy.setup().code == 10
    row = rows(healthy)["env.packages"]
    assert row["state"] == "failed"
    assert row["error"]
    assert row["log"] == str(healthy.workspace / ".ucllm" / "logs" / "env.packages.txt")
    text = healthy("status").out
    assert f"log: {row['log']}" in text
    assert "env.packages  failed" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_setup_that_was_stopped(empty: Tiny, number: int) -> None:
    child = empty.start("setup", "--profile", "tiny", "--json")
    try:
        journal = empty.workspace / ".ucllm" / "journal.jsonl"
        while not journal.exists() or "started" not in journal.read_text(encoding="utf-8"):
            time.sleep(0.02)
            assert child.poll() is None
        assert rows(empty)["env.python"]["state"] in ("started", "done")
        child.send_signal(number)
        child.communicate(timeout=60)
    finally:
        child.kill()
    # What a killed setup had started holds the lock until the guard has ended it.
    with (empty.workspace / ".ucllm" / "lock").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
    assert {row["state"] for row in rows(empty).values()} <= {"interrupted", "done"}


def test_only_started_is_running_while_the_workspace_is_held(healthy: Tiny) -> None:
    entry(healthy, 9, "started", requirement="env.packages", action="Install")
    assert rows(healthy)["env.packages"]["state"] == "interrupted"
    with (healthy.workspace / ".ucllm" / "lock").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert rows(healthy)["env.packages"]["state"] == "started"
        assert "env.packages  running" in healthy("status").out


def test_the_last_fix_counts_and_odd_lines_do_not(healthy: Tiny) -> None:
    for fix in (7, 8):
        entry(healthy, fix, "started", requirement="env.python", action=f"A{fix}")
        entry(healthy, fix, "done", requirement="env.python", action=f"A{fix}", seconds=1.25)
    entry(healthy, 8, "moved", requirement="env.python", **{"from": "a", "to": "b"})
    entry(healthy, 8, "done", requirement="env.python", action="B8", seconds=2)
    entry(healthy, 8, "made", requirement="env.python", inputs={})
    for odd in ({"requirement": 1}, {}, {"requirement": "env.python", "seconds": "x", "action": 3, "error": []}):
        entry(healthy, 8, "started", **odd)
    row = rows(healthy)["env.python"]
    assert (row["fix"], row["action"], row["state"], row["seconds"]) == (8, "B8", "interrupted", 3.25)
    entry(healthy, 8, "undone", requirement="env.python")
    assert rows(healthy)["env.python"]["state"] == "undone"
    assert "env.python    undone" in healthy("status").out


def test_setup_of_a_part_makes_it_and_what_it_needs(empty: Tiny) -> None:
    seen = empty.setup("--only", "env.python")
    assert seen.code == 0
    assert seen.statuses == {"env.python": "ok"}
    assert list(rows(empty)) == ["env.python"]
    assert json.loads((empty.workspace / ".ucllm" / "workspace.json").read_text())["profile"] == "tiny"
    assert empty.doctor().statuses["env.packages"] == "fail"
    assert "ucllm train" not in empty("setup", "--only", "env.python").out
    shutil.rmtree(empty.workspace)
    seen = empty.setup("--only", "env.packages")
    assert (seen.code, seen.statuses) == (0, {"env.packages": "ok"})
    assert list(rows(empty)) == ["env.python", "env.packages"]


def test_a_part_by_its_first_word(empty: Tiny) -> None:
    planned = empty.setup("--only", "env", "--dry-run")
    assert (planned.code, set(planned.statuses)) == (0, {"env.python", "env.packages"})
    assert not empty.workspace.exists()
    assert set(empty.doctor("--profile", "tiny", "--only", "env").statuses) == {"env.python", "env.packages"}
    left = empty.doctor("--profile", "tiny", "--skip", "env")
    assert (left.code, left.json["errors"][0]["code"]) == (2, "usage")


def test_unknown_parts_are_told_all_at_once(empty: Tiny) -> None:
    seen = empty.setup("--only", "env.pyton", "--only", "en", "--only", "env")
    assert seen.code == 2
    assert [error["hint"] for error in seen.json["errors"]] == ["Did you mean `env.python`?", "Did you mean `env`?"]
    assert not empty.workspace.exists()
    seen = empty.doctor("--profile", "tiny", "--only", "x.y", "--skip", "env.pyton")
    assert (seen.code, len(seen.json["errors"])) == (2, 2)
