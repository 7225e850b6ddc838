"""Engine ``torch`` with the options that change how it trains: memory, time, initial weights, Weights & Biases."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import torch_engine
from pipeline.recipe import resolve
from pipeline.train import Environment, StageFailed, StageResult
from tests.pipeline.conftest import Killer, Steps
from tests.pipeline.test_pretrain import history, pretrain, saved, sources

pytestmark = pytest.mark.usefixtures("one_thread")

#: Neither changes what comes out.
OPTIONS = ("pretrain.activation_checkpointing=true", "pretrain.hours=1")
#: Weights' standard deviations, read from what a run published.
DEVIATIONS = """
import json, sys
from safetensors.numpy import load_file
print(json.dumps({name: float(value.std()) for name, value in load_file(sys.argv[1]).items() if value.ndim == 2}))
"""


def has(python: Path, package: str) -> bool:
    """Whether the environment has ``package``; profile ``cpu`` has neither wandb nor peft."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def plain(corpus: tuple[Path, Path], env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """A run without any option."""
    folder = tmp_path_factory.mktemp("plain")
    return pretrain(Environment(env_python, folder / ".ucllm", "test"), sources(folder, corpus))


def losses(result: StageResult) -> list[Any]:
    return [each["loss"] for kind in ("train", "validation") for each in history(result)[kind]]


@pytest.mark.slow
def test_recomputed_activations_change_nothing_also_after_a_kill(
    plain: StageResult, corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    killer = Killer(lambda home: bool(saved(home)) and saved(home)[-1] >= 8)
    with pytest.raises(StageFailed, match="pretrain"):
        pretrain(environment, sources(tmp_path, corpus), *OPTIONS, observer=killer)
    again = Steps()
    result = pretrain(environment, sources(tmp_path, corpus), *OPTIONS, observer=again)
    assert killer.killed
    assert 8 < again.steps[0] <= 24
    assert losses(result) == pytest.approx(losses(plain), abs=1e-5)
    assert result.metrics["sample"] == plain.metrics["sample"]
    assert (result.metrics["steps"], result.metrics["stopped_by"]) == (24, "steps")


def test_initial_weights_have_the_deviation_that_was_asked_for(
    corpus: tuple[Path, Path], environment: Environment, env_python: Path, tmp_path: Path
) -> None:
    options = ("model.init_std=0.1", "pretrain.learning_rate=1e-9", "pretrain.min_learning_rate=0", "pretrain.steps=2")
    result = pretrain(environment, sources(tmp_path, corpus), *options)
    weights = Path(result.run_dir) / "model" / "model.safetensors"
    done = subprocess.run([str(env_python), "-c", DEVIATIONS, str(weights)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["transformer.wte.weight"] == pytest.approx(0.1, rel=0.05)
    assert found["transformer.h.0.attn.c_attn.weight"] == pytest.approx(0.1, rel=0.05)


def test_hours_end_a_run_with_checkpoint_evaluation_and_model(
    corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    quiet = Steps()
    hours = 4 / 3600
    options = ("pretrain.steps=1000000", f"pretrain.hours={hours}", "pretrain.eval_interval=1000000")
    began = time.monotonic()
    result = pretrain(
        environment, sources(tmp_path, corpus), *options, "pretrain.save_interval=1000000", observer=quiet
    )
    assert time.monotonic() - began < 120
    done = quiet.steps[-1]
    assert 0 < done < 1_000_000
    assert f"Stopped at step {done} of 1000000: pretrain.hours={hours} is over." in quiet.notes
    home = Path(result.run_dir)
    assert saved(home) == [done]
    made = history(result)
    assert made["train"][-1]["step"] == done
    assert [each["step"] for each in made["validation"]] == [done], "evaluated as the model is"
    assert (home / "model" / "model.safetensors").is_file()
    assert (result.metrics["steps"], result.metrics["stopped_by"]) == (done, "hours")
    assert result.metrics["tokens_trained"] == done * 8 * 32


def test_wandb_without_the_package_is_refused_before_training(
    corpus: tuple[Path, Path], environment: Environment, env_python: Path, tmp_path: Path
) -> None:
    if has(env_python, "wandb"):
        pytest.skip("the environment has wandb")
    steps = Steps()
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, corpus), "wandb.mode=offline", observer=steps)
    problem = failure.value.error.problems[0]
    assert problem.code == "wandb.missing"
    assert f"{env_python} -m pip install wandb" in problem.hint
    assert "wandb.mode=off" in problem.hint
    assert steps.steps == []


@pytest.mark.slow
def test_wandb_offline_writes_into_the_run_directory(
    corpus: tuple[Path, Path], environment: Environment, env_python: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not has(env_python, "wandb"):
        pytest.skip("the environment has no wandb: set UCLLM_TEST_PYTHON to one that has")
    key = "5ec2e7" * 7
    monkeypatch.setenv("WANDB_API_KEY", key[:40])
    options = ("wandb.mode=offline", "wandb.project=tests", "pretrain.steps=3")
    result = pretrain(environment, sources(tmp_path, corpus), *options)
    home = Path(result.run_dir)
    assert len(list(home.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    written = [path for path in home.rglob("*") if path.is_file()]
    assert all(key[:40].encode() not in path.read_bytes() for path in written)


@pytest.mark.slow
def test_wandb_online_without_a_key_is_told(
    corpus: tuple[Path, Path], environment: Environment, env_python: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not has(env_python, "wandb"):
        pytest.skip("the environment has no wandb: set UCLLM_TEST_PYTHON to one that has")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    steps = Steps()
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, corpus), "wandb.mode=online", observer=steps)
    problem = failure.value.error.problems[0]
    assert problem.code == "wandb.refused"
    assert "wandb login" in problem.hint
    assert steps.steps == []


def test_what_needs_several_processes_is_refused() -> None:
    config = resolve("botchan-tiny", [])
    assert torch_engine.problems(config) == []
    config.parallel.tp, config.parallel.pp, config.parallel.zero = 2, 4, 1
    found = torch_engine.problems(config)
    assert [problem.what.split()[0] for problem in found] == ["parallel.tp=2", "parallel.pp=4", "parallel.zero=1"]
    assert "parallel.zero=0" in found[2].hint
    assert all("--engine megatron-deepspeed" in problem.hint for problem in found)
