"""``train.smoke``: the check on composed facts, and the collector's real two-step training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from bootstrap import profiles
from bootstrap.facts import EnvFacts, Facts, SmokeFacts
from bootstrap.facts import smoke as section
from bootstrap.facts.collect import Request, collect
from bootstrap.requirements import SMOKE
from bootstrap.requirements.train_smoke import REQUIREMENT
from bootstrap.runner import diagnose
from bootstrap.workspace import Workspace

PROFILE = profiles.load("cpu")
OTHER = dataclasses.replace(PROFILE, engines={"pretrain": "megatron-deepspeed"})
HEALTHY = SmokeFacts("torch", 2, 5.77, 9.5, "", "/w/.ucllm/cache/smoke/run/pretrain/log.txt")


def _facts(smoke: SmokeFacts) -> Facts:
    return Facts("/w", smoke=smoke, collected=("smoke",))


def _request(workspace: Path, python: Path) -> Request:
    """A request whose env section, as for an adopted Python, names the interpreter."""
    return Request(PROFILE, Workspace(workspace), answers={"env": EnvFacts("", "ready", python=str(python))})


def test_healthy() -> None:
    found = REQUIREMENT.check(PROFILE, _facts(HEALTHY))
    assert (found.status, found.summary) == ("ok", "2 steps trained in 9.5 s, loss 5.77")


def test_broken() -> None:
    smoke = dataclasses.replace(HEALTHY, steps=0, loss=None, error="It died.\nImportError: x")
    found = REQUIREMENT.check(PROFILE, _facts(smoke))
    assert found.status == "fail"
    assert "ImportError: x" in found.evidence
    assert any(smoke.log in line for line in found.evidence)
    assert found.remedy
    assert found.remedy.commands == (f"tail -n 50 {smoke.log}",)


def test_broken_before_there_is_a_log() -> None:
    found = REQUIREMENT.check(PROFILE, _facts(SmokeFacts("torch", error="/w: Read-only file system")))
    assert found.status == "fail"
    assert "/w: Read-only file system" in found.evidence


@pytest.mark.parametrize("smoke", [SmokeFacts(), SmokeFacts("torch"), dataclasses.replace(HEALTHY, loss=None)])
def test_no_result_is_unknown(smoke: SmokeFacts) -> None:
    assert REQUIREMENT.check(PROFILE, _facts(smoke)).status == "unknown"


def test_another_engine_is_skipped(tmp_path: Path) -> None:
    facts = collect(OTHER, Workspace(tmp_path), ["smoke"])
    assert facts.smoke == SmokeFacts("megatron-deepspeed")
    found = REQUIREMENT.check(OTHER, facts)
    assert found.status == "skipped"
    assert "megatron-deepspeed" in found.summary
    assert not list(tmp_path.iterdir())


def test_only_in_its_tier() -> None:
    assert diagnose(PROFILE, _facts(HEALTHY), [REQUIREMENT])[0].status == "skipped"
    assert diagnose(PROFILE, _facts(HEALTHY), [REQUIREMENT], SMOKE)[0].status == "ok"


def test_a_python_that_fails(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho libtorch.so is broken >&2\nexit 3\n", encoding="utf-8")
    python.chmod(0o755)
    smoke = section.collect(_request(tmp_path / "w", python))
    assert smoke.steps == 0
    assert "exit code 3" in smoke.error
    assert "libtorch.so is broken" in smoke.error
    assert "libtorch.so is broken" in Path(smoke.log).read_text(encoding="utf-8")
    assert REQUIREMENT.check(PROFILE, _facts(smoke)).status == "fail"


def test_no_python_at_all(tmp_path: Path) -> None:
    facts = collect(PROFILE, Workspace(tmp_path), ["smoke"])
    assert not facts.errors
    assert str(tmp_path / ".venv" / "bin" / "python") in facts.smoke.error
    assert facts.smoke.steps == 0


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file\n", encoding="utf-8")
    smoke = section.collect(_request(tmp_path / "w", tmp_path / "python"))
    assert "Not a directory" in smoke.error


@pytest.mark.env
def test_a_real_training_each_time_anew(tmp_path: Path, env_python: Path) -> None:
    request = _request(tmp_path, env_python)
    smoke = section.collect(request)
    assert smoke.error == ""
    assert smoke.steps == 2
    assert smoke.loss is not None
    # Two small steps after a random start: about the logarithm of the padded vocabulary.
    assert smoke.loss == pytest.approx(math.log(384), abs=0.7)
    assert REQUIREMENT.check(PROFILE, _facts(smoke)).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == [".ucllm"]

    # The same path, and a Python that fails now: what the last run left must not pass for this one's.
    python = tmp_path / ".ucllm" / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *pretrain*) exit 3;; esac\nexec {env_python} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    broken = section.collect(_request(tmp_path, python))
    assert broken.steps == 0
    assert "exit code 3" in broken.error
