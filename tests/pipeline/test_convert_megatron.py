"""Conversion of a Megatron-DeepSpeed checkpoint as `ucllm train convert` does it, and of the original program's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.train import StageFailed

from .conftest import Quiet, RunStage
from .test_convert import stranger
from .tiny_model import shared_folder

EOD = 6
ORACLE = Path(__file__).parents[3] / "shared" / "oracle"

LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
saved = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    ours = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()(torch.tensor([saved["ids"]])).logits[0]
print(float((ours - saved["logits"]).abs().max()))
"""


@pytest.fixture(scope="session")
def tiny(env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(env_python, tmp_path_factory)


@pytest.fixture(scope="module")
def run(env_python: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:  # noqa: ARG001  the same Python
    """A run of two tensor-parallel ranks in bf16, its reference beside it; read only."""
    folder = tmp_path_factory.mktemp("megatron")
    spec = json.dumps({"tp": 2, "pp": 2, "zero": 1, "dtype": "bfloat16", "recorded_vocab": 333})
    script = Path(__file__).with_name("megatron_model.py")
    subprocess.run([env_python, "-P", script, folder, spec], check=True, capture_output=True)
    return folder / "run"


def test_a_run_becomes_a_model(run_stage: RunStage, env_python: Path, tiny: Path, run: Path, tmp_path: Path) -> None:
    observer, output = Quiet(), tmp_path / "converted"
    arguments: dict[str, Any] = {"inputs": (str(run),), "tokenizer": tiny / "tokenizer.model", "output": output}
    result = run_stage("convert", observer=observer, **arguments)
    assert any("global_step20" in note for note in observer.notes)
    assert result.metrics["vocab_size"] + result.metrics["padded_rows"] == 384
    config = json.loads((output / "config.json").read_text())
    assert {key: config[f"{key}_token_id"] for key in ("bos", "eos", "pad")} == {"bos": 1, "eos": EOD, "pad": 3}
    assert (config["activation_function"], config["n_positions"], config["vocab_size"]) == ("gelu_new", 64, 384)
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(result.metrics["vocab_size"], 384))

    seen = stranger(env_python, output, run.with_name("run.reference"), tiny / "tokenizer.model")
    assert seen["error"] == 0.0
    assert seen["same_ids"]
    assert seen["type"] == "GPT2LMHeadModel"
    assert all(each < result.metrics["vocab_size"] for each in seen["kept"])
    assert run_stage("convert", **arguments).state == "up-to-date"


def test_the_recipes_own_checkpoint_is_found(run_stage: RunStage, tiny: Path, run: Path, tmp_path: Path) -> None:
    root = tmp_path / "output" / "custom"
    shutil.copytree(run / "global_step20", root / "pretrain" / "model")
    (root / "tokenizer").mkdir()
    shutil.copy(tiny / "tokenizer.model", root / "tokenizer")
    run_stage("convert", ["pretrain.engine=megatron-deepspeed"])
    assert (root / "convert" / "model" / "model.safetensors").is_file()


def test_another_tokenizer_is_refused(run_stage: RunStage, env_python: Path, tiny: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("megatron_model.py")
    spec = json.dumps({"recorded_vocab": 350})
    subprocess.run([env_python, "-P", script, tmp_path, spec], check=True, capture_output=True)
    with pytest.raises(StageFailed) as failure:
        run_stage(
            "convert",
            inputs=(str(tmp_path / "run" / "global_step20"),),
            tokenizer=tiny / "tokenizer.model",
            output=tmp_path / "converted",
        )
    assert failure.value.error.problems[0].code == "convert.other-tokenizer"
    assert "350" in failure.value.error.problems[0].message
    assert not (tmp_path / "converted").exists()


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the outputs of the original programs (../shared) are not here")
@pytest.mark.parametrize("name", ["tiny", "tp2"])
def test_the_original_programs_logits(run_stage: RunStage, env_python: Path, tmp_path: Path, name: str) -> None:
    checkpoint, output = ORACLE / "checkpoints" / name, tmp_path / "converted"
    run_stage("convert", inputs=(str(checkpoint),), tokenizer=ORACLE / "tokenizer" / "botchan.model", output=output)
    done = subprocess.run(
        [env_python, "-c", LOGITS, output, checkpoint / "logits.pt"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) <= 2e-6
