"""Break a real environment → the right finding → `doctor --fix --yes` → healthy; what doctor promises to scripts."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.bootstrap.conftest import Tiny, content, stamps
from tests.bootstrap.wheels import write_profile


def _no_env(tiny: Tiny) -> None:
    shutil.rmtree(tiny.env)


def _dangling_python(tiny: Tiny) -> None:
    (tiny.env / "bin" / "python").unlink()
    (tiny.env / "bin" / "python").symlink_to("/nowhere/python3")


def _failing_python(tiny: Tiny) -> None:
    (tiny.env / "bin" / "python").unlink()
    (tiny.env / "bin" / "python").write_text("#!/bin/sh\necho broken loader >&2\nexit 1\n", encoding="utf-8")
    (tiny.env / "bin" / "python").chmod(0o755)


def _babbling_python(tiny: Tiny) -> None:
    _failing_python(tiny)
    (tiny.env / "bin" / "python").write_text("#!/bin/sh\necho '[1, 2]'\n", encoding="utf-8")


def _a_file(tiny: Tiny) -> None:
    shutil.rmtree(tiny.env)
    tiny.env.write_text("mine", encoding="utf-8")


def _dangling_env(tiny: Tiny) -> None:
    shutil.rmtree(tiny.env)
    tiny.env.symlink_to(tiny.root / "gone")


def _not_a_venv(tiny: Tiny) -> None:
    (tiny.env / "pyvenv.cfg").unlink()


def _interrupted_venv(tiny: Tiny) -> None:
    (tiny.env / ".ucllm-unfinished").touch()
    (tiny.env / "bin" / "activate").unlink()


def _no_pip(tiny: Tiny) -> None:
    subprocess.run([tiny.env / "bin" / "python", "-m", "pip", "uninstall", "-qy", "pip"], check=True)


def _pip_without_its_package(tiny: Tiny) -> None:
    shutil.rmtree(tiny.site / "pip")


def _half_pip(tiny: Tiny) -> None:
    (next(tiny.site.glob("pip-*.dist-info")) / "RECORD").unlink()


def _missing(tiny: Tiny) -> None:
    for path in tiny.site.glob("beta*"):
        path.rename(tiny.root / path.name)


def _another_version(tiny: Tiny) -> None:
    wheel = next((tiny.root / "wheels").glob("alpha-1.1-*"))
    pip = [str(tiny.env / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert list(tiny.site.glob("alpha-1.1.dist-info"))


def _without_record(tiny: Tiny) -> None:
    (tiny.site / "alpha-1.0.dist-info" / "RECORD").unlink()


def _killed_before_its_commands(tiny: Tiny) -> None:
    """What pip leaves when it is killed between the wheel's files and the commands: the wheel's own RECORD."""
    (tiny.env / "bin" / "alpha-cli").unlink()
    record = tiny.site / "alpha-1.0.dist-info" / "RECORD"
    rows = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.write_text("".join(row for row in rows if "INSTALLER" not in row and "bin/" not in row), encoding="utf-8")


def _without_metadata(tiny: Tiny) -> None:
    (tiny.site / "alpha-1.0.dist-info" / "METADATA").unlink()


def _empty_metadata(tiny: Tiny) -> None:
    (tiny.site / "alpha-1.0.dist-info" / "METADATA").write_text("", encoding="utf-8")


def _empty_folder(tiny: Tiny) -> None:
    shutil.rmtree(tiny.site / "alpha-1.0.dist-info")
    (tiny.site / "alpha-1.0.dist-info").mkdir()


def _renamed_by_a_killed_pip(tiny: Tiny) -> None:
    (tiny.site / "alpha-1.0.dist-info").rename(tiny.site / "~lpha-1.0.dist-info")


#: What is broken, the finding, a word of its summary or evidence, and what is kept in the backups afterwards.
FAULTS: list[tuple[Callable[[Tiny], None], str, str, str]] = [
    (_no_env, "env.python", "There is no Python environment yet", ""),
    (_dangling_python, "env.python", "No such file or directory", ".venv"),
    (_failing_python, "env.python", "broken loader", ".venv"),
    (_babbling_python, "env.python", "its answer cannot be read", ".venv"),
    (_a_file, "env.python", "Not a directory", ".venv"),
    (_dangling_env, "env.python", "does not work", ".venv"),
    (_not_a_venv, "env.python", "not a virtual environment", ".venv"),
    (_interrupted_venv, "env.python", "interrupted", ".venv"),
    (_no_pip, "env.python", "has no pip", ""),
    (_pip_without_its_package, "env.python", "has no pip", "pip-"),
    (_half_pip, "env.python", "has no pip", "pip-"),
    (_missing, "env.packages", "missing: beta 2.0", ""),
    (_another_version, "env.packages", "another version: alpha 1.1", ""),
    (_without_record, "env.packages", "half installed: alpha", "alpha-1.0.dist-info"),
    (_killed_before_its_commands, "env.packages", "half installed: alpha", "alpha-1.0.dist-info"),
    (_without_metadata, "env.packages", "half installed: alpha", "alpha-1.0.dist-info"),
    (_empty_metadata, "env.packages", "half installed: alpha", "alpha-1.0.dist-info"),
    (_empty_folder, "env.packages", "half installed: alpha", "alpha-1.0.dist-info"),
    (_renamed_by_a_killed_pip, "env.packages", "missing: alpha 1.0", "~lpha-1.0.dist-info"),
]


@pytest.mark.parametrize(("fault", "finding", "words", "kept"), FAULTS, ids=[item[0].__name__ for item in FAULTS])
def test_fault(healthy: Tiny, fault: Callable[[Tiny], None], finding: str, words: str, kept: str) -> None:
    before = content(healthy.env)
    fault(healthy)
    # Without --yes and without a terminal, or with --dry-run, the plan is shown and nothing is done.
    untouched = stamps(healthy.workspace)
    for args in ((), ("--fix",), ("--fix", "--dry-run"), ("--fix", "--dry-run", "--yes")):
        seen = healthy.doctor(*args)
        others = {"env.packages": "blocked"} if finding == "env.python" else {"env.python": "ok"}
        assert seen.statuses == {finding: "fail", **others}
        assert seen.code == 1
        (failing,) = [item for item in seen.json["data"]["findings"] if item["status"] == "fail"]
        assert words in "\n".join([failing["summary"], *failing["evidence"]])
        assert failing["remedy"]["automatic"]
        assert failing["remedy"]["commands"]
        assert bool(seen.json["data"].get("plan")) == bool(args)
    assert stamps(healthy.workspace) == untouched

    fixed = healthy.doctor("--fix", "--yes")
    assert fixed.code == 0, fixed.out + fixed.err
    assert fixed.json["data"]["actions"]
    assert healthy.doctor().statuses == {"env.python": "ok", "env.packages": "ok"}
    assert content(healthy.env) == before
    assert len(healthy.backups) == bool(kept)
    assert all(name.startswith(kept) for name in healthy.backups)


def test_what_was_moved_aside_is_whole(healthy: Tiny) -> None:
    _a_file(healthy)
    assert healthy.doctor("--fix", "--yes").code == 0
    (kept,) = (healthy.workspace / ".ucllm" / "backups").iterdir()
    assert kept.read_text(encoding="utf-8") == "mine"


def test_missing_pip_costs_no_package(healthy: Tiny) -> None:
    """Gigabytes are not downloaded again for a pip."""
    _no_pip(healthy)
    alpha = (healthy.site / "alpha.py").stat().st_mtime_ns
    fixed = healthy.doctor("--fix", "--yes")
    assert fixed.code == 0
    assert [item["requirement"] for item in fixed.json["data"]["actions"]] == ["env.python"]
    assert (healthy.site / "alpha.py").stat().st_mtime_ns == alpha


def test_a_python_the_profile_does_not_support(healthy: Tiny) -> None:
    write_profile(healthy.root / "locks", "tiny", {}, cpu_index=healthy.root, pythons='"3.99"')
    seen = healthy.doctor("--fix", "--yes")
    assert seen.statuses == {"env.python": "fail", "env.packages": "blocked"}
    assert seen.code == 1, "nothing was tried, so it is the check's code"
    assert "is not one this profile supports (3.99)" in seen.out
    assert healthy.backups == []


def test_what_the_user_installed_besides_is_left_alone(healthy: Tiny) -> None:
    own = healthy.site / "mine-1.0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    assert healthy.doctor().code == 0
    _without_record(healthy)
    assert healthy.doctor("--fix", "--yes").code == 0
    assert own.is_dir()


def test_a_fix_that_does_not_help_is_exit_4(healthy: Tiny) -> None:
    """The second check decides, not the fixer's word."""
    _missing(healthy)
    healthy.patch = "import bootstrap.host as host\nhost.run_logged = lambda *args, **options: None"
    fixed = healthy.doctor("--fix", "--yes")
    assert (fixed.code, fixed.json["status"]) == (4, "failed")
    assert fixed.statuses["env.packages"] == "fail"


_RAISES = """
import bootstrap.requirements.env_{name} as module, dataclasses
def check(profile, facts): raise RuntimeError("the check is broken")
module.REQUIREMENT = dataclasses.replace(module.REQUIREMENT, check=check)
"""


def test_a_check_that_raises_is_unknown_and_the_rest_still_prints(healthy: Tiny) -> None:
    healthy.patch = _RAISES.format(name="packages")
    seen = healthy.doctor()
    assert (seen.code, seen.statuses) == (3, {"env.python": "ok", "env.packages": "unknown"})
    assert "RuntimeError: the check is broken" in seen.out
    healthy.patch = _RAISES.format(name="python")
    assert healthy.doctor().statuses == {"env.python": "unknown", "env.packages": "blocked"}
    assert healthy.doctor("--fix", "--yes").code == 3


def test_a_failure_beats_an_unknown(healthy: Tiny) -> None:
    healthy.patch = _RAISES.format(name="python") + (
        "import bootstrap.requirements.env_packages as p\n"
        "p.REQUIREMENT = dataclasses.replace(p.REQUIREMENT, needs=())\n"
    )
    _missing(healthy)
    assert healthy.doctor().code == 1


_WARNS = """
import bootstrap.requirements.env_packages as module, dataclasses
from bootstrap.findings import Finding, WARN
module.REQUIREMENT = dataclasses.replace(
    module.REQUIREMENT, check=lambda profile, facts: Finding("env.packages", WARN, "rather old", ("looked",)))
"""


def test_strict_turns_warnings_into_1(healthy: Tiny) -> None:
    healthy.patch = _WARNS
    assert healthy.doctor().code == 0
    assert healthy.doctor("--strict").code == 1
    assert healthy.doctor("--strict", "--fix", "--yes").code == 1, "there is no fix for a warning"


def test_a_python_that_hangs_is_named_and_not_waited_for(healthy: Tiny) -> None:
    _failing_python(healthy)
    (healthy.env / "bin" / "python").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    healthy.patch = "import bootstrap.facts.env as e\ne.TIMEOUT_S = 0.5"
    seen = healthy.doctor()
    assert seen.statuses == {"env.python": "unknown", "env.packages": "blocked"}
    assert "did not end in 0.5 s" in seen.out
    assert healthy.doctor("--fix", "--yes").code == 3
    assert healthy.backups == [], "it may only be slow"


def test_the_contract_of_json(healthy: Tiny) -> None:
    """Scripts rely on these keys; add, never rename."""
    for tiny_args in ((), ("--fix",)):
        _missing(healthy)
        report = healthy.doctor(*tiny_args).json
        assert list(report) == ["ucllm_result_version", "command", "status", "exit_code", "data", "errors"]
        assert (report["ucllm_result_version"], report["command"]) == (1, "doctor")
        assert {"workspace", "profile", "findings"} <= report["data"].keys()
        assert report["data"]["profile"].keys() == {"name", "reason"}
        for finding in report["data"]["findings"]:
            keys = ["id", "status", "summary", "evidence", "remedy", "blocked_by", "took_ms"]
            assert list(finding) == keys
            if finding["remedy"]:
                assert list(finding["remedy"]) == ["text", "commands", "automatic", "needs"]
    assert [item.keys() for item in report["data"]["plan"]] == [
        {"requirement", "action", "commands", "waits_for"}
    ] * len(report["data"]["plan"])


@pytest.mark.parametrize("fault", [_no_env, _missing, None])
def test_text_and_json_hold_the_same_findings(healthy: Tiny, fault: Callable[[Tiny], None] | None) -> None:
    if fault:
        fault(healthy)
    findings = healthy.doctor().json["data"]["findings"]
    text = healthy("doctor")
    waiting = [line for line in text.out.splitlines() if "waiting for it:" in line]
    for finding in findings:
        if finding["status"] == "blocked":
            assert sum(line.count(finding["id"]) for line in waiting) == 1, "one line under what it waits for"
            continue
        (line,) = [line for line in text.out.splitlines() if finding["id"] in line.split()[1:2]]
        assert finding["summary"] in line
    shown = [line for line in text.out.splitlines() if line[:2] == "  " and line[2] in "✓!✗·?-"]
    assert len(shown) == len([finding for finding in findings if finding["status"] != "blocked"])
    assert text.code == (1 if fault else 0)
    assert "\x1b" not in text.out + text.err, "no colours in a pipe"
    if fault:
        marks = [line[2] for line in text.out.splitlines() if line[:2] == "  " and line[2:3].strip()]
        assert marks[0] == "✗", "failures come first"
        assert text.out.rstrip().endswith(f"`ucllm doctor --fix --workspace {healthy.workspace}`")


@pytest.mark.parametrize("answer", ["y\n", "n\n"])
def test_on_a_terminal_it_asks(healthy: Tiny, answer: str) -> None:
    _missing(healthy)
    controller, terminal = pty.openpty()
    env_before = content(healthy.env)
    child = healthy.start("doctor", "--fix", stdin=terminal, stdout=terminal, stderr=terminal)
    os.write(controller, answer.encode())
    assert child.wait(120) == (0 if answer == "y\n" else 1)
    os.close(terminal)
    assert healthy.doctor().code == (0 if answer == "y\n" else 1)
    assert (content(healthy.env) == env_before) == (answer == "n\n")
    os.close(controller)
