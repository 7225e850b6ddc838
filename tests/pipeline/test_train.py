"""Starting, stopping and publishing, with a stand-in stage in a real process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.train import launch
from tests.conftest import REPOSITORY
from tests.pipeline.orchestration import Bench, bench

__all__ = ["bench"]  # a fixture


def _content(folder: Path) -> dict[str, str]:
    """What a user would see; not our own log, lock and job."""
    ours = {"log.txt", "log.previous.txt", "lock", "job.json", "started", "manifest.json"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ours]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def test_a_stage_runs_once(bench: Bench) -> None:
    first = bench.train()
    assert (first.state, first.reason, first.metrics) == ("ran", "it has not run yet", {"length": 3})
    assert _content(bench.home) == {"out.txt": "abc", "folder/copy.txt": "abc"}
    manifest = json.loads((bench.home / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["versions"] == {"ucllm": "9.9", "stand-in": "1"}
    assert manifest["argv"][1:3] == ["-m", "pipeline.child"]
    assert manifest["checks_skipped"] is False
    assert "a line of the log" in (bench.home / "log.txt").read_text(encoding="utf-8")
    stamps = {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")}
    second = bench.train()
    assert (second.state, second.reason, second.metrics) == ("up-to-date", "", {"length": 3})
    assert {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")} == stamps
    assert bench.train(force=True).reason == "--force was given"


def test_starting_without_checks_is_recorded(bench: Bench) -> None:
    bench.environment = dataclasses.replace(bench.environment, no_checks=True)
    bench.train()
    assert json.loads((bench.home / "manifest.json").read_text(encoding="utf-8"))["checks_skipped"] is True


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("killed", "stage.died", "by signal 9"),
        ("killed with a worker", "stage.died", "by signal 9"),
        ("raise", "stage.died", "with exit code 1"),
        ("exit", "stage.died", "with exit code 7"),
        ("explain", "stage.bad-input", "What is wrong."),
        ("wrong", "verify.failed", "The text is wrong."),
        ("full", "output.not-writable", "File too large"),
        ("nothing", "output.not-writable", "No such file"),
    ],
)
def test_a_failure_publishes_nothing_and_is_resumable(bench: Bench, how: str, code: str, words: str) -> None:
    bench.train()
    before = _content(bench.home)
    bench.source.write_text("changed", encoding="utf-8")
    began = time.monotonic()
    failure = bench.failure(bench.plan(how))
    assert time.monotonic() - began < 20, "a worker that lives on must not be waited for"
    (result,) = failure.results
    assert (result.state, result.stage) == ("failed", "tokenizer")
    problem = failure.error.problems[0]
    assert problem.code == code
    assert words in problem.message
    if code == "stage.died":
        assert "a line of the log" in problem.why
        assert str(bench.home / "log.txt") in problem.hint
    if how == "raise":
        assert "RuntimeError: a bug" in problem.why
    if how == "wrong":
        assert [item.what for item in failure.error.problems] == ["The text is wrong.", "The folder is wrong."]
    if how != "nothing":
        assert {name: text for name, text in _content(bench.home).items() if not name.startswith("work/")} == before
    again = bench.train()
    assert again.state == "ran"
    assert _content(bench.home) == {"out.txt": "changed", "folder/copy.txt": "changed"}


def test_a_first_failure_leaves_no_output(bench: Bench) -> None:
    bench.failure(bench.plan("wrong"))
    assert not (bench.home / "out.txt").exists()
    assert not (bench.home / "manifest.json").exists()
    assert bench.train().reason == "it was interrupted"


def test_a_child_that_talks_nonsense_does_not_stop_us(bench: Bench) -> None:
    assert bench.train(bench.plan("nonsense")).state == "ran"


def test_an_environment_that_is_not_there(bench: Bench) -> None:
    bench.environment = dataclasses.replace(bench.environment, python=bench.root / "gone" / "python")
    (problem,) = bench.failure(bench.plan()).error.problems
    assert (problem.code, problem.hint) == ("stage.not-started", "Make the environment with `ucllm setup`.")


@pytest.mark.parametrize("name", ["work", "job.json", "log.txt", "lock", ""])
def test_something_stands_where_we_write(bench: Bench, name: str) -> None:
    """Like a read-only folder, but also for root, who runs many tests and may write everywhere."""
    path = bench.home / name if name else bench.home
    path.parent.mkdir(exist_ok=True)
    if name in ("work", ""):
        path.write_text("in the way", encoding="utf-8")
    else:
        (path / "x").mkdir(parents=True)
    if name in ("work", "log.txt"):
        assert bench.train().state == "ran", "what is ours alone is put aside"
    else:
        assert bench.failure(bench.plan()).error.problems[0].code == "output.not-writable"


def test_an_output_of_ones_own_is_made_and_made_again(bench: Bench) -> None:
    target = bench.root / "own" / "result.txt"
    plan = bench.plan(output=target)
    assert bench.train(plan).run_dir == str(target.with_name("result.txt.ucllm") / "tokenizer")
    assert target.read_text(encoding="utf-8") == "abc"
    bench.source.write_text("new", encoding="utf-8")
    assert bench.train(plan).state == "ran"
    assert target.read_text(encoding="utf-8") == "new"
    # Killed between the old manifest's end and the new one: what lies there is still ours.
    (target.with_name("result.txt.ucllm") / "tokenizer" / "manifest.json").unlink()
    assert bench.train(plan).state == "ran"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "our folder's place"])
def test_what_is_not_ours_is_never_replaced(bench: Bench, kind: str) -> None:
    target = bench.root / "own" / "result.txt"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("mine", encoding="utf-8")
    elif kind == "folder":
        target.mkdir()
        (target / "x").write_text("mine", encoding="utf-8")
    elif kind == "dangling link":
        target.symlink_to("nowhere")
    else:
        (target.parent / "folder").mkdir()
        (target.parent / "folder" / "x").write_text("mine", encoding="utf-8")
    before = sorted(str(path) for path in target.parent.rglob("*"))
    failure = bench.failure(bench.plan(output=target))
    (problem,) = failure.error.problems
    assert problem.code == "output.exists"
    assert "--force" in problem.hint
    assert not (target.with_name("result.txt.ucllm") / "tokenizer" / "started").exists(), (
        "refused before anything starts"
    )
    assert [name for name in before if not os.path.lexists(name)] == []
    bench.failure(bench.plan(output=target))  # and it stays so
    assert bench.train(bench.plan(output=target), force=True).state == "ran"
    assert target.read_text(encoding="utf-8") == "abc"


def test_a_run_that_failed_owns_nothing(bench: Bench) -> None:
    target = bench.root / "own" / "result.txt"
    bench.failure(bench.plan("explain", output=target))
    target.write_text("mine", encoding="utf-8")
    assert bench.failure(bench.plan(output=target)).error.problems[0].code == "output.exists"
    assert target.read_text(encoding="utf-8") == "mine"


def test_two_stages_with_the_same_prefix_know_each_others_outputs(bench: Bench) -> None:
    target = bench.root / "own" / "result"
    plan = bench.plan(output=target)
    other = dataclasses.replace(plan, stage="corpus", outputs={"text": target.with_name("result.bin")})
    bench.train(plan)
    bench.failure(dataclasses.replace(other, config={"how": "explain"}))
    assert bench.train(plan, force=False).state in ("ran", "up-to-date")
    bench.source.write_text("new", encoding="utf-8")
    assert bench.train(plan).state == "ran"


_OTHER = """
import json, sys
from pathlib import Path
from pipeline.train import Environment, StageFailed
from tests.pipeline.orchestration import Bench
bench = Bench(Path(sys.argv[1]), Environment(Path(sys.argv[2]), Path(sys.argv[3]), "9.9"))
try:
    print(bench.train(bench.plan(sys.argv[4])).state)
except StageFailed as failure:
    print(json.dumps([failure.error.problems[0].code, failure.error.problems[0].why]))
"""


def _other(bench: Bench, how: str) -> subprocess.Popen[str]:
    environment = bench.environment
    argv = [sys.executable, "-c", _OTHER, str(bench.root), str(environment.python), str(environment.state), how]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    if how == "wait":
        deadline = time.monotonic() + 60
        while not (bench.home / "started").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.poll() is None
    return child


def test_a_second_writer_is_told_who_the_first_is(bench: Bench) -> None:
    first = _other(bench, "wait")
    second = _other(bench, "")
    code, why = json.loads(second.communicate(timeout=60)[0])
    assert code == "run.locked"
    assert f"pid {first.pid} on " in why
    first.kill()
    first.communicate()
    # Its stage dies with it and lets the lock go: nothing has to be cleaned up.
    assert bench.train().state == "ran"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_stage(bench: Bench, number: signal.Signals) -> None:
    first = _other(bench, "wait")
    stage = (bench.home / "lock").read_text(encoding="utf-8")
    assert str(first.pid) in stage
    first.send_signal(number)
    first.communicate(timeout=30)
    assert first.returncode != 0
    assert bench.train().reason == "it was interrupted"


def test_launch_writes_nothing(bench: Bench) -> None:
    before = sorted(bench.root.parent.parent.rglob("*"))
    start = launch(bench.plan(), bench.environment)
    assert start.argv == (str(bench.environment.python), "-m", "pipeline.child", str(bench.home / "job.json"))
    assert start.env["PYTHONPATH"] == str(bench.environment.state / "code")
    assert sorted(bench.root.parent.parent.rglob("*")) == before


def test_what_others_wrote_is_kept_aside(bench: Bench) -> None:
    target = bench.root / "own" / "result.txt"
    target.parent.mkdir()
    target.write_text("my thesis", encoding="utf-8")
    plan = bench.plan(output=target)
    assert bench.train(plan, force=True).state == "ran"
    (kept,) = target.parent.glob("result.txt.kept-*")
    assert kept.read_text(encoding="utf-8") == "my thesis"
    kept.unlink()
    target.write_text("abc, mended by hand", encoding="utf-8")
    assert bench.train(plan).state == "ran"
    (kept,) = target.parent.glob("result.txt.kept-*")
    assert kept.read_text(encoding="utf-8") == "abc, mended by hand"
    assert target.read_text(encoding="utf-8") == "abc"
