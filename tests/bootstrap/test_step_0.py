"""docs/step-0.md holds what the guide types and what ucllm does: neither side may lack a line."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bootstrap import profiles, requirements, runner
from bootstrap.facts import EnvFacts, Facts
from bootstrap.facts.collect import TIMEOUTS_S
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Tiny
from tests.conftest import REPOSITORY, UCLLM, cli_environment

PAGE = (REPOSITORY / "docs" / "step-0.md").read_text(encoding="utf-8")
#: Where the guide's own commands go through words that name a place or join commands, and what only prints.
_PASSED_OVER = ("cd ", 'echo "===="', "echo '", "chmod ", "bash ./")


def _commands(seed: str) -> list[str]:
    """What the guide has people type in Step 0, one command each."""
    step = seed[seed.index("## Step 0.") : seed.index("## Step 1.")]
    typed = re.findall(r"^(?:\(\.venv\) )?\$ (.+)$", step, re.MULTILINE)
    pieces = [piece.strip() for line in typed for piece in re.split(r"&&", line)]
    return [piece for piece in pieces if piece and not piece.startswith(_PASSED_OVER)]


def test_every_command_of_the_guide_is_on_the_page(shared: Path) -> None:
    seeds = [path.read_text(encoding="utf-8") for path in (shared / "seed").glob("*.txt")]
    commands = [command for seed in seeds if "## Step 0." in seed for command in _commands(seed)]
    assert len(commands) > 40
    for command in commands:
        words = [word for word in command.split() if re.search(r"==|/tags/|=\d|^DS_BUILD|--\w+_ext|\.sh$", word)]
        program = next(word for word in command.split() if "=" not in word)
        # What is pinned or switched on is what counts; paths are the machine's.
        wanted = [re.sub(r"^.*/(?=Miniconda3|ucllm_)|^\"|\"$", "", word) for word in words]
        missing = [word for word in (program, *wanted) if word not in PAGE and word.split("=")[-1] not in PAGE]
        assert missing == [], command


def test_every_step_of_the_plan_is_on_the_page(tmp_path: Path) -> None:
    profile, workspace = profiles.load("gcp-2024.02"), Workspace(tmp_path / "ws")
    facts = dataclasses.replace(
        Facts(str(workspace.root), profile.name),
        env=EnvFacts(str(workspace.env), "absent"),
        collected=tuple(TIMEOUTS_S),
    )
    planned = runner.plans(profile, facts, requirements.load(profile.requirements), workspace)
    made = [item.requirement.id for item in planned]
    assert {"env.miniconda", "env.python", "env.conda-packages", "env.hooks", "ops.deepspeed", "ops.apex"} <= {*made}
    named = set(re.findall(r"`([a-z]+\.[a-z-]+)`", PAGE))
    assert {name for name in made if name.startswith(("env.", "ops.", "source.", "build."))} <= named
    assert {name for name in named if name.split(".")[0] in ("env", "ops", "source", "build", "machine")} <= {
        *profile.requirements
    }


@pytest.mark.slow
@pytest.mark.network
def test_the_real_sources_on_a_cpu(tmp_path: Path) -> None:
    """Megatron-DeepSpeed, apex, llm-jp-sft and DeepSpeed themselves, with Python 3.9 and torch 2.2.0.

    ``UCLLM_TEST_SOURCES`` names a folder with a bare repository of each source: ``megatron``, ``apex``, ``llm-jp-sft``.
    """
    sources, python = os.environ.get("UCLLM_TEST_SOURCES"), shutil.which("python3.9")
    if not sources or not python:
        pytest.skip("needs UCLLM_TEST_SOURCES and a python3.9 on PATH")
    profile = profiles.load("megatron-cpu")
    variables = {"GIT_CONFIG_COUNT": str(len(profile.sources)), "PIP_CONSTRAINT": os.devnull}
    for number, (name, source) in enumerate(profile.sources.items()):
        variables[f"GIT_CONFIG_KEY_{number}"] = f"url.{Path(sources, name).as_uri()}.insteadOf"
        variables[f"GIT_CONFIG_VALUE_{number}"] = source.url
    env = {**cli_environment(tmp_path / "home"), **variables}
    place = ("--workspace", str(tmp_path / "ws"), "--profile", "megatron-cpu")
    made = subprocess.run([*UCLLM, "setup", "--yes", *place], env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    healthy = subprocess.run([*UCLLM, "doctor", "--deep", *place], env=env, capture_output=True, text=True)
    assert healthy.returncode == 0, healthy.stdout
    tiny = Tiny(tmp_path)
    code = "import torch, deepspeed, apex, apex_C, transformers, trl; print(torch.__version__.split('+')[0])"
    done = subprocess.run([tiny.env / "bin" / "python", "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "2.2.0", done.stderr
