"""What can be asked of `ucllm doctor` and `ucllm undo`, on a real workspace."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bootstrap import runner
from bootstrap.facts import Facts, MachineFacts
from bootstrap.facts.collect import TIMEOUTS_S
from bootstrap.findings import FAIL, OK, SKIPPED, UNKNOWN, WARN, Finding, fail, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import DEEP, QUICK, Requirement
from tests.bootstrap.conftest import Tiny


def test_list_checks_nothing(healthy: Tiny) -> None:
    shutil.rmtree(healthy.env)
    seen = healthy("doctor", "--list", "--json")
    assert seen.code == 0
    assert [item["id"] for item in seen.json["data"]["requirements"]] == ["env.python", "env.packages"]
    assert set(seen.json["data"]["requirements"][0]) == {
        "id", "title", "why", "step", "tier", "optional", "needs", "fixable",
    }  # fmt: skip
    text = healthy("doctor", "--list")
    assert "env.packages" in text.out
    assert "Step 0-3" in text.out


def test_explain_says_what_why_and_where(healthy: Tiny) -> None:
    seen = healthy("doctor", "--explain", "env.packages")
    assert seen.code == 0
    for words in ("env.packages: Python packages", "fail late", "Step 0-3", "env.python", "tiny"):
        assert words in seen.out
    wrong = healthy("doctor", "--explain", "env.package")
    assert wrong.code == 2
    assert "env.packages" in wrong.err


def test_only_brings_what_it_needs_and_shows_it_where_it_fails(healthy: Tiny) -> None:
    assert healthy.doctor("--only", "env.packages").statuses == {"env.packages": "ok"}
    shutil.rmtree(healthy.env)
    seen = healthy.doctor("--only", "env.packages")
    assert seen.statuses == {"env.python": "fail", "env.packages": "blocked"}
    assert seen.code == 1


def test_skip_leaves_out(healthy: Tiny) -> None:
    assert healthy.doctor("--skip", "env.packages").statuses == {"env.python": "ok"}


@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_an_id_that_is_not_there_is_named(healthy: Tiny, option: str) -> None:
    seen = healthy.doctor(option, "env.pakages", option, "x.y")
    assert seen.code == 2
    assert [item["code"] for item in seen.json["errors"]] == ["usage", "usage"]
    assert "env.packages" in seen.json["errors"][0]["hint"]


def test_saved_facts_give_the_same_findings_elsewhere(healthy: Tiny) -> None:
    (healthy.site / "alpha.py").touch()
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    file = healthy.root / "facts.json"
    here = healthy.doctor("--save-facts", str(file))
    there = healthy.doctor("--facts", str(file))
    assert (
        (there.code, there.statuses) == (here.code, here.statuses) == (1, {"env.python": "ok", "env.packages": "fail"})
    )
    assert there.json["data"]["profile"]["name"] == "tiny"
    assert healthy("doctor", "--facts", str(file), "--fix", "--yes").code == 2, "another machine cannot be repaired"


def test_saved_facts_hold_no_names_and_no_secrets(healthy: Tiny) -> None:
    healthy.variables |= {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "w-secret", "NCCL_PROXY_TOKEN": "n-secret"}
    file = healthy.root / "facts.json"
    assert healthy.doctor("--save-facts", str(file)).code == 0
    text = file.read_text(encoding="utf-8")
    assert "secret" not in text
    assert str(healthy.root / "home") not in text
    if getpass.getuser() != "root":
        assert getpass.getuser() not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Cannot read"),
        ("[1]", "holds no facts"),
        ('{"workspace": "/w", "facts_version": 99}', "another version"),
        ('{"workspace": "/w", "facts_version": 1, "env": {"path": 3, "state": "x"}}', "facts.env.path"),
    ],
)
def test_a_file_that_holds_no_facts_is_refused(healthy: Tiny, content: str, words: str) -> None:
    file = healthy.root / "facts.json"
    file.write_text(content, encoding="utf-8")
    seen = healthy.doctor("--facts", str(file), "--profile", "tiny")
    assert seen.code == 2
    assert words in seen.json["errors"][0]["message"]
    assert "--save-facts" in seen.json["errors"][0]["hint"]


def test_a_collector_that_crashes_costs_only_what_reads_it(healthy: Tiny) -> None:
    healthy.patch = "import bootstrap.facts.env as e\ndef broken(request): raise ValueError('no')\ne.collect = broken"
    seen = healthy.doctor()
    assert seen.code == 3
    assert seen.statuses == {"env.python": "unknown", "env.packages": "blocked"}
    assert "ValueError: no" in seen.out


def test_a_collector_that_hangs_is_not_waited_for(healthy: Tiny) -> None:
    healthy.patch = (
        "import time, bootstrap.facts.env as e, bootstrap.facts.collect as c\n"
        "c.TIMEOUTS_S = {**c.TIMEOUTS_S, 'env': 0.5}\ne.collect = lambda request: time.sleep(60)"
    )
    seen = healthy.doctor()
    assert seen.code == 3
    assert seen.statuses["env.python"] == "unknown"
    assert "no answer in" in seen.out


def test_undo_puts_back_what_a_fix_moved(healthy: Tiny) -> None:
    python = healthy.env / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert healthy("doctor", "--fix", "--yes").code == 0
    listed = healthy("undo", "--list", "--json").json["data"]["fixes"]
    assert [item["requirement"] for item in listed] == ["env.python"]
    undone = healthy("undo", "env.python", "--json")
    assert undone.code == 0
    assert undone.json["data"]["put_back"][0]["to"] == str(healthy.env)
    assert python.readlink() == Path("/nowhere/python3")
    assert healthy.doctor().statuses["env.python"] == "fail"
    assert len(healthy.backups) == 1, "the environment that stood there is kept"
    assert "Nothing to undo" in healthy("undo").out
    assert healthy("undo", "1").code == 2


def test_a_fix_that_does_not_help_exits_4(healthy: Tiny) -> None:
    """The second check decides, never the fixer's own word."""
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    healthy.patch = (
        "import dataclasses, bootstrap.requirements.env_packages as p\n"
        "from bootstrap.requirements import Action\n"
        "idle = lambda profile, facts, workspace: [Action('nothing', (), lambda doing: None)]\n"
        "p.REQUIREMENT = dataclasses.replace(p.REQUIREMENT, plan=idle)"
    )
    seen = healthy.doctor("--fix", "--yes")
    assert seen.code == 4
    assert seen.statuses["env.packages"] == "fail"


PROFILE = Profile("p", "", Path(), "", {}, ("a.one", "b.two"), (), optional=("b.two",))


def _requirement(identity: str, finding: Finding, *, tier: str = QUICK, reads: tuple[str, ...] = ()) -> Requirement:
    return Requirement(identity, "t", "w", "0-0", lambda _profile, _facts: finding, tier=tier, reads=reads)


@pytest.mark.parametrize(("given", "wanted"), [(fail("x", ()), WARN), (ok("x"), OK), (warn("x", ()), WARN)])
def test_what_is_optional_can_at_most_warn(given: Finding, wanted: str) -> None:
    required, optional = runner.diagnose(
        PROFILE, Facts("/w", collected=()), [_requirement("a.one", given), _requirement("b.two", given)]
    )
    assert (required.status, optional.status) == (given.status, wanted)


def test_a_deeper_check_is_skipped_until_asked_for() -> None:
    deep = _requirement("a.one", fail("x", ()), tier=DEEP)
    assert runner.diagnose(PROFILE, Facts("/w"), [deep])[0].status == SKIPPED
    assert runner.diagnose(PROFILE, Facts("/w"), [deep], DEEP)[0].status == FAIL


def test_facts_that_were_not_collected_are_neither_fine_nor_wrong() -> None:
    needs_gpu = _requirement("a.one", ok("x"), reads=("gpu", "machine"))
    found = runner.diagnose(PROFILE, Facts("/w", machine=MachineFacts(), collected=("machine",)), [needs_gpu])
    assert found[0].status == UNKNOWN
    assert found[0].evidence == ("gpu",)


def test_a_check_that_hangs_or_raises_is_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(runner, "CHECK_TIMEOUT_S", 0.2)
    never = threading.Event()

    def hangs(_profile: Profile, _facts: Facts) -> Finding:
        never.wait(20)
        return ok("too late")

    def raises(_profile: Profile, _facts: Facts) -> Finding:
        raise KeyError("lost")

    rest = [
        Requirement("a.one", "t", "w", "0-0", hangs, reads=()),
        Requirement("b.two", "t", "w", "0-0", raises, reads=()),
        _requirement("c.three", ok("fine")),
    ]
    profile = Profile("p", "", Path(), "", {}, ("a.one", "b.two", "c.three"), ())
    found = runner.diagnose(profile, Facts("/w"), rest)
    never.set()
    assert [item.status for item in found] == [UNKNOWN, UNKNOWN, OK]
    assert "did not end" in found[0].summary
    assert "KeyError" in found[1].evidence[0]


def test_every_section_has_a_collector() -> None:
    from importlib import import_module

    for name in TIMEOUTS_S:
        assert callable(import_module(f"bootstrap.facts.{name}").collect)


def test_the_first_line_comes_before_the_facts(healthy: Tiny) -> None:
    healthy.patch = (
        "import time, bootstrap.facts.env as e\nreal = e.collect\n"
        "def slow(request):\n    time.sleep(3)\n    return real(request)\ne.collect = slow"
    )
    child = healthy.start("doctor")
    assert child.stdout
    first = child.stdout.readline()
    assert first.startswith("Profile tiny")
    assert child.poll() is None, "the facts are still being collected"
    child.wait(60)
    child.stdout.close()
    assert child.stderr
    child.stderr.close()


def test_the_journal_is_json(healthy: Tiny) -> None:
    subprocess.run(["rm", "-r", str(next(healthy.site.glob("beta-*.dist-info")))], check=True)
    assert healthy("doctor", "--fix", "--yes").code == 0
    entries = [json.loads(line) for line in (healthy.workspace / ".ucllm/journal.jsonl").read_text().splitlines()]
    # The template's own setup made the fixes 1 and 2.
    mine = [entry for entry in entries if entry["fix"] == 3]
    assert mine
    assert entries[-1] in mine
    assert {(entry["requirement"], entry["status"]) for entry in mine} <= {
        ("env.packages", status) for status in ("started", "moved", "done", "made")
    }
