"""Step 0 from nothing to healthy, and again: what is cached, what changed, what was broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bootstrap import whole
from tests.bootstrap.conda_channel import SUBDIR
from tests.bootstrap.conftest import Tiny
from tests.bootstrap.whole import Whole, actions, setup
from tests.conftest import UCLLM, cli_environment


@pytest.fixture
def another(tmp_path: Path, step_0: Path) -> tuple[Tiny, Whole]:
    """Another user's folder with the same profile and the same caches of wheels, and a workspace made from them.

    The repositories are copies, so that a test may commit to them.
    """
    for name in ("profile", "git", "wheels"):
        shutil.copytree(step_0 / name, tmp_path / name, symlinks=True)
    shutil.copytree(step_0 / "home" / ".cache" / "ucllm", tmp_path / "home" / ".cache" / "ucllm")
    toml = tmp_path / "profile" / "profile.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace(str(step_0 / "git"), str(tmp_path / "git")))
    return Tiny(tmp_path), Whole(
        tmp_path / "profile", tmp_path / "git" / "apex", tmp_path / "git" / "Megatron-DeepSpeed"
    )


def test_from_nothing_to_healthy(step_0: Path) -> None:
    tiny = Tiny(step_0)
    outcome = tiny.doctor("--deep")
    assert outcome.code == 0, outcome.out + outcome.err
    wrong = {name: status for name, status in outcome.statuses.items() if status not in ("ok", "skipped")}
    wrong.pop("env.nvcc", None)  # this machine may have another nvcc, which comes first in this shell
    assert wrong == {}
    code = "import ssl, torch, deepspeed, apex, apex_C, amp_C, flash_attn, flash_attn_2_cuda, megatron, alpha, pybind11"
    argv = [
        *UCLLM,
        "run",
        "--workspace",
        str(tiny.workspace),
        "--",
        "python",
        "-c",
        f"{code}; print(torch.__version__)",
    ]
    done = subprocess.run(argv, env=cli_environment(tiny.root / "home"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2.2.0\n"), done.stderr


def test_builds_overlap_and_the_order_is_the_seeds(step_0: Path) -> None:
    said = json.loads((step_0 / "said.json").read_text(encoding="utf-8"))
    made = [name for name, word in said["actions"] if word == "Install" and not name.startswith("env.")]
    assert made == ["ops.deepspeed", "build.megatron", "ops.apex", "ops.flash-attn"]
    lines = (step_0 / "ws" / ".ucllm" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    journal = [json.loads(line) for line in lines]
    names = [(item["requirement"], item["status"]) for item in journal]
    # The next fix began before DeepSpeed's build had ended.
    assert names.index(("source.megatron", "started")) < names.index(("ops.deepspeed", "done"))


@pytest.mark.slow
def test_no_second_compilation(another: tuple[Tiny, Whole]) -> None:
    tiny, _whole = another
    # With no compiler that works, only the cache can give the wheels.
    fake = tiny.root / "bin"
    fake.mkdir()
    (fake / "cc").write_text("#!/bin/sh\necho 'nothing may be compiled here' >&2\nexit 1\n")
    (fake / "cc").chmod(0o755)
    tiny.variables["PATH"] = f"{fake}:{os.environ['PATH']}"
    outcome = setup(tiny)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "Build" not in {word for name, word in actions(outcome) if name != "build.helpers"}
    texts = [item["action"] for item in outcome.json["data"]["actions"] if item["requirement"] == "ops.apex"]
    assert texts == ["Install apex, built before, from the cache"]


@pytest.mark.slow
def test_a_changed_input_redoes_that_step_alone_and_says_which(another: tuple[Tiny, Whole]) -> None:
    tiny, repositories = another
    assert setup(tiny).code == 0
    newer = whole.commit(repositories.apex, {"apex.txt": "newer\n"})
    old = whole._git("-C", str(repositories.apex), "rev-parse", "HEAD~1")
    repositories.pin_apex(newer)
    found = {item["id"]: item for item in tiny.doctor().json["data"]["findings"]}
    assert found["source.apex"]["status"] == "fail"
    assert found["ops.apex"]["status"] == "fail"
    assert f"source: {old} → {newer}" in found["ops.apex"]["evidence"]
    assert [name for name, item in found.items() if item["status"] == "fail"] == ["source.apex", "ops.apex"]
    outcome = setup(tiny)
    assert outcome.code == 0, outcome.out + outcome.err
    assert [name for name, _word in actions(outcome)] == ["source.apex", "ops.apex", "ops.apex"]
    assert actions(setup(tiny)) == []


def test_a_second_setup_does_nothing(step_0: Path) -> None:
    tiny = Tiny(step_0)
    assert actions(setup(tiny)) == []


def _remove(tiny: Tiny, pattern: str) -> None:
    found = [*tiny.workspace.glob(pattern)]
    assert found
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


#: What is broken, what the doctor finds, which words its fix begins with.
FAULTS = {
    "Miniconda is gone": ("miniconda3", "env.miniconda", ["Get", "Install"]),
    "a conda package is gone": (".venv/conda-meta/pytorch-cuda-*.json", "env.conda-packages", ["Install"]),
    "an op is gone": (
        ".venv/lib/python3*/site-packages/deepspeed/ops/adam/fused_adam_op.*.so",
        "ops.deepspeed",
        ["Install"],
    ),
    "an extension of apex is gone": (".venv/lib/python3*/site-packages/amp_C.*.so", "ops.apex", ["Install"]),
    "flash-attn is gone": (".venv/lib/python3*/site-packages/flash_attn*", "ops.flash-attn", ["Install"]),
    "Megatron is not installed": (".venv/lib/python3*/site-packages/megatron*", "build.megatron", ["Install"]),
}


@pytest.mark.slow
def test_faults_are_found_and_fixed(another: tuple[Tiny, Whole]) -> None:
    tiny, _whole = another
    assert setup(tiny).code == 0
    for name, (pattern, wanted, words) in FAULTS.items():
        _remove(tiny, pattern)
        assert tiny.doctor().statuses[wanted] == "fail", name
        fixed = tiny("doctor", "--fix", "--yes", "--json", "--only", wanted)
        assert fixed.statuses[wanted] == "ok", name + fixed.err
        assert [word for requirement, word in actions(fixed) if requirement == wanted] == words, name
        assert tiny.doctor().statuses[wanted] == "ok", name


@pytest.mark.slow
def test_nothing_is_compiled_before_its_guards_hold(another: tuple[Tiny, Whole]) -> None:
    tiny, _whole = another
    shutil.rmtree(tiny.root / "home" / ".cache")
    toml = tiny.root / "profile" / "profile.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace("newest_gcc = 99", "newest_gcc = 4"), encoding="utf-8")
    outcome = setup(tiny)
    assert outcome.code == 10
    found = {item["id"]: item for item in outcome.json["data"]["findings"]}
    assert found["machine.compiler"]["status"] == "fail"
    assert "not tried: it needs machine.compiler first" in found["ops.apex"]["evidence"]
    assert not [name for name, _word in actions(outcome) if name.startswith("ops.")]
    assert found["source.llm-jp-sft"]["status"] == "ok"  # what needs no compiler is there


@pytest.mark.slow
def test_the_fix_of_one_part_has_its_guards_too(another: tuple[Tiny, Whole]) -> None:
    """What is checked out is not what is pinned, and lacks a module; the wheel is made of what is pinned."""
    tiny, _whole = another
    assert setup(tiny).code == 0
    shutil.rmtree(tiny.root / "home" / ".cache")
    checkout = tiny.workspace / "apex"
    spec = json.loads((checkout / "stand-in.json").read_text(encoding="utf-8"))
    del spec["modules"]["amp_C"]
    whole.commit(checkout, {"stand-in.json": json.dumps(spec)})
    _remove(tiny, ".venv/lib/python3*/site-packages/amp_C.*.so")
    only = ("doctor", "--fix", "--yes", "--json", "--only", "ops.apex")
    toml = tiny.root / "profile" / "profile.toml"
    text = toml.read_text(encoding="utf-8")
    toml.write_text(text.replace("newest_gcc = 99", "newest_gcc = 4"), encoding="utf-8")
    outcome = tiny(*only)
    (found,) = (item for item in outcome.json["data"]["findings"] if item["id"] == "ops.apex")
    assert (found["status"], found["evidence"][-1]) == ("fail", "not tried: it needs machine.compiler first")
    assert [name for name, _word in actions(outcome)] == ["source.apex"]
    whole.commit(checkout, {"stand-in.json": json.dumps(spec, indent=2)})
    toml.write_text(text, encoding="utf-8")
    outcome = tiny(*only)
    assert outcome.statuses["ops.apex"] == "ok", outcome.out + outcome.err
    assert [name for name, _word in actions(outcome)] == ["source.apex", "ops.apex", "ops.apex"]


@pytest.mark.slow
def test_a_cache_that_takes_nothing_and_variables_that_leak_in(another: tuple[Tiny, Whole]) -> None:
    tiny, _whole = another
    shutil.rmtree(tiny.root / "home" / ".cache")
    (tiny.root / "home" / ".cache").touch()
    # Another build's flags in the user's shell, which would leave an op out.
    tiny.variables["DS_BUILD_FUSED_ADAM"] = "0"
    outcome = tiny("setup", "--profile", str(tiny.root / "profile"), "--yes")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "so apex is kept in the workspace" in outcome.err
    kept = [path.name.split("-")[0] for path in (tiny.workspace / ".ucllm" / "cache" / "wheels").iterdir()]
    assert sorted(kept) == ["apex", "deepspeed", "flash", "megatron"]


@pytest.mark.slow
def test_an_incomplete_wheel_is_never_kept(another: tuple[Tiny, Whole]) -> None:
    tiny, repositories = another
    spec = json.loads((repositories.apex / "stand-in.json").read_text(encoding="utf-8"))
    del spec["modules"]["amp_C"]  # as an old pip does, which drops the option
    repositories.pin_apex(whole.commit(repositories.apex, {"stand-in.json": json.dumps(spec)}, "23.08"))
    before = {path.name for path in (tiny.root / "home" / ".cache" / "ucllm" / "wheels").iterdir()}
    outcome = setup(tiny)
    assert outcome.code == 10
    assert "Building apex left out amp_C." in outcome.json["errors"][0]["message"]
    assert {path.name for path in (tiny.root / "home" / ".cache" / "ucllm" / "wheels").iterdir()} == before


@pytest.mark.slow
def test_what_a_killed_pip_left_half_installed(another: tuple[Tiny, Whole]) -> None:
    tiny, _whole = another
    assert setup(tiny).code == 0
    for name, requirement in (
        ("apex", "ops.apex"),
        ("flash_attn", "ops.flash-attn"),
        ("megatron_core", "build.megatron"),
    ):
        next(tiny.env.glob(f"lib/python3*/site-packages/{name}-*.dist-info/RECORD")).unlink()
        assert tiny.doctor().statuses[requirement] == "fail"
    outcome = setup(tiny)
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.slow
def test_a_failed_build_keeps_its_log(another: tuple[Tiny, Whole]) -> None:
    tiny, repositories = another
    broken = whole.commit(repositories.apex, {"backend.py": "raise SystemExit('nvcc fatal: stand-in')\n"}, "23.08")
    repositories.pin_apex(broken)
    outcome = setup(tiny)
    assert outcome.code == 10
    error = outcome.json["errors"][0]
    log = tiny.workspace / ".ucllm" / "logs" / "ops.apex.txt"
    assert str(log) in error["hint"]
    assert "nvcc fatal: stand-in" in log.read_text(encoding="utf-8")
    assert not [*tiny.workspace.glob("apex/*.so")]


def test_the_channel_is_the_only_one_asked(step_0: Path) -> None:
    record = json.loads(next((step_0 / "ws" / ".venv" / "conda-meta").glob("pytorch-2*.json")).read_text())
    assert record["url"].startswith((step_0 / "made" / "channel").as_uri() + f"/{SUBDIR}/")
