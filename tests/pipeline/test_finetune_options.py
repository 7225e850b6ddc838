"""Engine ``trl`` with the options that change how it trains: packing, LoRA, recomputed activations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import trl_engine
from pipeline.finetune import plan
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, train
from tests.conftest import REPOSITORY
from tests.pipeline import tiny_packing
from tests.pipeline.conftest import Killer, Quiet, Steps
from tests.pipeline.test_finetune import SETTINGS, STRANGER, pairs, saved_ten, write
from tests.pipeline.test_pretrain_options import has

pytestmark = pytest.mark.usefixtures("one_thread")

#: Small steps, so that packing leaves enough of them to be killed between.
SMALL_STEPS = ("finetune.micro_batch_size=1", "finetune.epochs=5", "finetune.learning_rate=0.01")


def run(folder: Path, base: Path, python: Path, *settings: str, observer: Quiet | None = None) -> StageResult:
    sources = Sources(root=folder, inputs=(str(base),), output=folder / "tuned")
    folder.mkdir(exist_ok=True)
    data = write(folder / "data.jsonl", pairs())
    config = resolve("botchan-tiny", [*SETTINGS, f"finetune.data={data}", *settings])
    environment = Environment(python, folder / ".ucllm", "test")
    return train([plan("finetune", config, sources)], environment, observer or Quiet())[0]


def history(result: StageResult) -> dict[str, Any]:
    return dict(json.loads((Path(result.run_dir) / "history.json").read_text(encoding="utf-8")))


def losses(result: StageResult) -> list[Any]:
    return [each["loss"] for kind in ("train", "held_out") for each in history(result)[kind]]


@pytest.fixture(scope="module")
def without_dropout(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, whose dropout would draw other numbers for other rows."""
    folder = tmp_path_factory.mktemp("steady") / "base"
    shutil.copytree(chat / "base", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# --- packing ---------------------------------------------------------------------------------------------------------


def test_a_packed_token_costs_what_it_costs_alone(chat: Path, env_python: Path, tmp_path: Path) -> None:
    output = tmp_path / "shown.json"
    argv = [str(env_python), "-P", str(tiny_packing.__file__), str(chat / "base"), str(output)]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    shown = json.loads(output.read_text(encoding="utf-8"))
    assert sum(shown["rows"]) == len(tiny_packing.TALKS)
    assert max(shown["rows"]) > 2
    for kind in ("eager", "sdpa"):
        alone, packed = shown["losses"][kind]
        assert len(packed) == len(alone) > 100, "the same tokens are learned"
        assert packed == pytest.approx(alone, abs=1e-5), kind
    refused = shown["refused"]
    assert refused["eager"] == refused["sdpa"] == refused["llama"] == []
    for name in ("eager leaking", "sdpa leaking", "bloom"):
        assert refused[name][0] == "finetune.packing", name


@pytest.mark.slow
def test_a_packed_step_is_the_unpacked_one(without_dropout: Path, env_python: Path, tmp_path: Path) -> None:
    once = ("finetune.epochs=1", "finetune.micro_batch_size=16", "finetune.warmup_ratio=0")
    alone = run(tmp_path / "alone", without_dropout, env_python, *once)
    quiet = Quiet()
    packed = run(tmp_path / "packed", without_dropout, env_python, *once, "finetune.packing=true", observer=quiet)
    assert (alone.metrics["rows"], alone.metrics["steps"], packed.metrics["steps"]) == (16, 1, 1)
    assert 1 < packed.metrics["rows"] < 8
    assert any("16 conversations are packed into" in note for note in quiet.notes)
    # bf16 is what `auto` takes where the processor has it; its sums depend on their order.
    near = 1e-5 if alone.metrics["precision"] == "fp32" else 2e-2
    assert losses(packed) == pytest.approx(losses(alone), abs=near)
    assert packed.metrics["answer_loss"] < packed.metrics["answer_loss_base"] - 0.01


@pytest.mark.slow
def test_recomputed_activations_change_nothing_also_packed_and_after_a_kill(
    chat: Path, env_python: Path, tmp_path: Path
) -> None:
    options = ("finetune.packing=true", *SMALL_STEPS)
    whole = run(tmp_path / "whole", chat / "base", env_python, *options)
    assert whole.metrics["answer_loss"] < whole.metrics["answer_loss_base"] - 1
    recomputed = (*options, "finetune.gradient_checkpointing=true")
    killer = Killer(saved_ten)
    with pytest.raises(StageFailed, match="finetune"):
        run(tmp_path / "killed", chat / "base", env_python, *recomputed, observer=killer)
    again = Steps()
    result = run(tmp_path / "killed", chat / "base", env_python, *recomputed, observer=again)
    assert killer.killed
    assert again.steps[0] > 10
    assert losses(result) == pytest.approx(losses(whole), abs=1e-5)
    assert result.metrics["sample"] == whole.metrics["sample"]


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_lora_without_peft_is_refused_before_the_model_is_loaded(env_python: Path, tmp_path: Path) -> None:
    if has(env_python, "peft"):
        pytest.skip("the environment has peft")
    (tmp_path / "no-model").mkdir()
    with pytest.raises(StageFailed) as failure:
        run(tmp_path / "run", tmp_path / "no-model", env_python, "finetune.lora_rank=4")
    problem = failure.value.error.problems[0]
    assert problem.code == "finetune.no-peft"
    assert "finetune.lora_rank=4 needs the package peft" in problem.what
    assert f"{env_python} -m pip install peft" in problem.hint


@pytest.mark.parametrize("more", [(), ("finetune.packing=true", "finetune.gradient_checkpointing=true")])
@pytest.mark.slow
def test_adapters_are_merged_and_survive_a_kill(
    chat: Path, env_python: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    if not has(env_python, "peft"):
        pytest.skip("the environment has no peft: set UCLLM_TEST_PYTHON to one that has")
    options = ("finetune.lora_rank=4", *SMALL_STEPS, "finetune.epochs=8", *more)
    whole = run(tmp_path / "whole", chat / "base", env_python, *options)
    metrics = whole.metrics
    assert metrics["answer_loss"] < metrics["answer_loss_base"] - 0.3, "its embeddings are random and stay so"
    names = sorted(path.name for path in (tmp_path / "whole" / "tuned").iterdir())
    assert not [name for name in names if "adapter" in name], "the folder is a plain model"
    argv = [str(env_python), "-c", STRANGER, str(tmp_path / "whole" / "tuned"), json.dumps(pairs()[16:])]
    seen = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert seen["loss"] == pytest.approx(metrics["answer_loss"], abs=1e-4)

    killer = Killer(saved_ten)
    with pytest.raises(StageFailed, match="finetune"):
        run(tmp_path / "killed", chat / "base", env_python, *options, observer=killer)
    again = Steps()
    result = run(tmp_path / "killed", chat / "base", env_python, *options, observer=again)
    assert killer.killed
    assert again.steps[0] > 10
    assert losses(result) == pytest.approx(losses(whole), abs=1e-5)


# --- one process -----------------------------------------------------------------------------------------------------


def test_launchers_of_several_processes_are_refused() -> None:
    config = resolve("botchan-tiny", [])
    assert trl_engine.problems(config) == []
    for launcher in ("deepspeed", "accelerate"):
        config.finetune.launcher = launcher
        found = trl_engine.problems(config)
        assert [problem.code for problem in found] == ["config.contradiction"]
        assert f"finetune.launcher={launcher}" in found[0].what
        assert "--engine llm-jp-sft" in found[0].hint
