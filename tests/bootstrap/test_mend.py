"""The runner: what fixes need beside the check, builds beside other fixes, and what something was made from."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootstrap import profiles
from bootstrap.facts import Facts
from bootstrap.facts import journal as journal_facts
from bootstrap.facts.collect import Request
from bootstrap.findings import FAIL, OK, UNKNOWN, Finding, fail, ok
from bootstrap.mend import Mended, mend
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.runner import diagnose
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError

PROFILE = profiles.load("cpu")


class Machine:
    """What is true, and a requirement for each part of it."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.true: set[str] = set()
        self.told: list[str] = []
        self.inputs: dict[str, str] = {}

    def collect(self) -> Facts:
        journal = journal_facts.collect(Request(PROFILE, self.workspace))
        return dataclasses.replace(Facts(str(self.workspace.root)), journal=journal, collected=("machine", "journal"))

    def part(
        self,
        name: str,
        build: Callable[[Doing], None] | None = None,
        act: Callable[[Doing], None] | None = None,
        **more: Any,
    ) -> Requirement:
        def check(_profile: Profile, _facts: Facts) -> Finding:
            return ok(name) if name in self.true else fail(name, ())

        def plan(_profile: Profile, _facts: Facts, _workspace: Workspace) -> list[Action]:
            def fix(_doing: Doing) -> None:
                self.true.add(name)

            first = [Action(f"build {name}", (), build, background=True)] if build and name not in self.built else []
            return [*first, Action(f"make {name}", (), act or fix)]

        return Requirement(name, name, name, "0-0", check, plan, **more)

    built: frozenset[str] = frozenset()

    def mend(self, *parts: Requirement, collect: Callable[[], Facts] | None = None) -> Mended:
        def say(requirement: Requirement, action: Action | None, text: str) -> None:
            self.told.append(text or (action.text if action else requirement.id))

        return mend(PROFILE, self.workspace, parts, self.collect(), collect or self.collect, say)

    def statuses(self, *parts: Requirement) -> Mapping[str, str]:
        return {item.id: item.status for item in diagnose(PROFILE, self.collect(), parts)}

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.workspace.state / "journal.jsonl").read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _of(mended: Mended) -> dict[str, str]:
    return {item.id: item.status for item in mended.findings}


def test_what_only_a_fix_needs_is_no_matter_once_the_thing_is_there(machine: Machine) -> None:
    compiler = dataclasses.replace(machine.part("machine.compiler"), plan=None)
    op = machine.part("ops.apex", fix_needs=("machine.compiler",))
    mended = machine.mend(compiler, op)
    assert _of(mended) == {"machine.compiler": FAIL, "ops.apex": FAIL}
    assert "it needs machine.compiler first" in mended.findings[1].evidence[-1]
    assert not mended.actions
    assert not mended.still_failing  # it was not tried
    machine.true.add("ops.apex")
    assert machine.statuses(compiler, op) == {"machine.compiler": FAIL, "ops.apex": OK}


def test_builds_go_on_beside_other_fixes_and_beside_each_other(machine: Machine) -> None:
    both, cloned = threading.Barrier(2, timeout=20), threading.Event()

    def build(_doing: Doing) -> None:
        assert cloned.wait(20)  # a later requirement was fixed while this one was being built
        both.wait()

    def clone(_doing: Doing) -> None:
        machine.true.add("source.apex")
        cloned.set()

    def builder(name: str) -> Callable[[Doing], None]:
        def run(doing: Doing) -> None:
            build(doing)
            machine.built |= {name}

        return run

    parts = (
        machine.part("ops.deepspeed", builder("ops.deepspeed")),
        machine.part("build.uses", needs=("ops.deepspeed",)),
        machine.part("source.apex", act=clone),
        machine.part("ops.apex", builder("ops.apex"), fix_needs=("source.apex",)),
    )
    mended = machine.mend(*parts)
    assert [item.id for item in mended.findings] == [part.id for part in parts]
    assert set(_of(mended).values()) == {OK}
    made = [line for line in machine.told if line.startswith("make")]
    assert made == ["make source.apex", "make ops.deepspeed", "make build.uses", "make ops.apex"]
    numbers = {(item["fix"], item["requirement"]) for item in machine.journal()}
    assert len({number for number, _name in numbers}) == len(numbers)  # no two fixes share a number


def test_a_failed_build_ends_the_run_once_the_others_have_ended(machine: Machine) -> None:
    failed, other = threading.Event(), threading.Event()

    def broken(_doing: Doing) -> None:
        failed.set()
        raise UcllmError("command.failed", "nvcc said no")

    def slow(_doing: Doing) -> None:
        assert failed.wait(20)
        other.set()

    with pytest.raises(UcllmError, match="nvcc said no"):
        machine.mend(machine.part("ops.apex", broken), machine.part("ops.flash-attn", slow))
    assert other.is_set()
    statuses = [item["status"] for item in machine.journal() if item["requirement"] == "ops.apex"]
    assert statuses == ["background", "started", "failed"]


def test_what_was_made_from_something_else_is_made_again_and_says_what_changed(machine: Machine) -> None:
    def inputs(_profile: Profile, _facts: Facts) -> dict[str, str]:
        return machine.inputs

    op = machine.part("ops.apex", inputs=inputs)
    machine.inputs = {"torch": "2.2.0", "GPU": "8.9"}
    assert _of(machine.mend(op)) == {"ops.apex": OK}
    assert machine.statuses(op) == {"ops.apex": OK}
    machine.inputs = {"torch": "2.2.1", "GPU": ""}  # the GPU cannot be seen here: nothing to compare
    found = diagnose(PROFILE, machine.collect(), [op])[0]
    assert found.status == FAIL
    assert found.evidence == ("torch: 2.2.0 → 2.2.1",)
    mended = machine.mend(op)
    assert _of(mended) == {"ops.apex": OK}
    assert [item["action"] for item in mended.actions] == ["make ops.apex"]
    assert machine.statuses(op) == {"ops.apex": OK}


def test_what_was_made_by_hand_is_taken_as_it_is(machine: Machine) -> None:
    machine.true.add("ops.apex")
    op = machine.part("ops.apex", inputs=lambda _profile, _facts: {"torch": "2.2.0"})
    assert machine.statuses(op) == {"ops.apex": OK}
    assert not machine.mend(op).actions


def test_what_was_planned_before_a_build_is_what_is_done_after_it(machine: Machine) -> None:
    """Facts that were read while compilers had the machine may lack a version, and so name another build."""
    planned: list[str] = []

    def plan(_profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
        name = f"apex-{facts.machine.libc}"
        planned.append(name)

        def install(_doing: Doing) -> None:
            machine.true.add("ops.apex")

        build = Action(f"build {name}", (), lambda _doing: None, background=True)
        return [build, Action(f"install {name}", (), install)]

    def inputs(_profile: Profile, facts: Facts) -> dict[str, str]:
        return {"libc": facts.machine.libc}

    def collect() -> Facts:
        return _with_libc(machine, "")

    op = dataclasses.replace(machine.part("ops.apex", inputs=inputs), plan=plan)
    machine.collect = lambda: _with_libc(machine, "2.31")  # type: ignore[method-assign]
    mended = machine.mend(op, machine.part("source.apex"), collect=collect)
    assert set(_of(mended).values()) == {OK}
    assert planned == ["apex-2.31"]
    told = [item["action"] for item in mended.actions if item["requirement"] == "ops.apex"]
    assert told == ["build apex-2.31", "install apex-2.31"]
    (made,) = [item for item in machine.journal() if item["status"] == "made"]
    assert made["inputs"] == {"libc": "2.31"}


def _with_libc(machine: Machine, libc: str) -> Facts:
    facts = Machine.collect(machine)
    return dataclasses.replace(facts, machine=dataclasses.replace(facts.machine, libc=libc))


def test_a_build_is_waited_for_whatever_its_check_says_by_then(machine: Machine) -> None:
    lost, ended = threading.Event(), threading.Event()

    def build(_doing: Doing) -> None:
        assert lost.wait(20)
        time.sleep(0.5)
        ended.set()

    def collect() -> Facts:
        """The section cannot be read."""
        lost.set()
        return dataclasses.replace(machine.collect(), errors={"machine": "no answer in 10 s"})

    mended = machine.mend(machine.part("ops.apex", build), machine.part("source.apex"), collect=collect)
    assert ended.is_set(), "an hour's work was thrown away"
    assert _of(mended)["ops.apex"] == UNKNOWN
    assert [item["status"] for item in machine.journal() if item["requirement"] == "ops.apex"][-1] == "done"


def test_what_could_not_be_read_during_a_build_is_read_again_after_it(machine: Machine) -> None:
    ended, collected = threading.Event(), threading.Event()

    def build(_doing: Doing) -> None:
        assert collected.wait(20)
        machine.built |= {"ops.apex"}
        ended.set()

    def collect() -> Facts:
        errors = {} if ended.is_set() else {"machine": "no answer in 10 s"}
        collected.set()
        return dataclasses.replace(machine.collect(), errors=errors)

    mended = machine.mend(machine.part("ops.apex", build), machine.part("source.apex"), collect=collect)
    assert _of(mended)["ops.apex"] == OK


@pytest.mark.parametrize("error", [UcllmError("command.failed", "disk full"), ValueError("a bug"), OSError("gone")])
def test_every_build_that_failed_is_told(machine: Machine, error: Exception) -> None:
    both = threading.Barrier(2, timeout=20)

    def broken(_doing: Doing) -> None:
        both.wait()
        raise UcllmError("command.failed", "nvcc said no")

    def other(_doing: Doing) -> None:
        both.wait()
        raise error

    with pytest.raises(UcllmError) as raised:
        machine.mend(machine.part("ops.apex", broken), machine.part("ops.flash-attn", other))
    told = "\n".join(problem.message for problem in raised.value.problems)
    assert "nvcc said no" in told
    assert str(error) in told
    assert len(raised.value.problems) == 2


def test_a_bug_in_a_build_is_no_success(machine: Machine) -> None:
    def broken(_doing: Doing) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        machine.mend(machine.part("ops.apex", broken))


def test_what_a_cached_wheel_leaves_broken_says_which_folder_to_remove(machine: Machine) -> None:
    def plan(_profile: Profile, _facts: Facts, _workspace: Workspace) -> list[Action]:
        return [Action("install", (), lambda _doing: None, kept="/home/user/.cache/ucllm/wheels/apex-0123")]

    op = dataclasses.replace(machine.part("ops.apex"), plan=plan)
    mended = machine.mend(op)
    assert mended.still_failing == ("ops.apex",)
    assert "rm -r /home/user/.cache/ucllm/wheels/apex-0123" in mended.findings[0].evidence[-1]
