"""The runner: what fixes need beside the check, builds beside other fixes, and what something was made from."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootstrap import profiles
from bootstrap.facts import Facts
from bootstrap.facts import journal as journal_facts
from bootstrap.facts.collect import Request
from bootstrap.findings import FAIL, OK, Finding, fail, ok
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

    def mend(self, *parts: Requirement) -> Mended:
        def say(requirement: Requirement, action: Action | None, text: str) -> None:
            self.told.append(text or (action.text if action else requirement.id))

        return mend(PROFILE, self.workspace, parts, self.collect(), self.collect, say)

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
