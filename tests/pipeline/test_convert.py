"""Conversion in real child processes: what comes out is what went in, described rightly; bad input is told apart."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import runs
from pipeline.convert import plan
from pipeline.errors import UcllmError
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import StageFailed

from .conftest import RunStage
from .tiny_model import shared_folder

EOD = 6  # its id in every tokenizer with the published symbols

#: Runs in a process that knows nothing but the folder: what a user does with it.
STRANGER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ours, reference, spm = sys.argv[1:]
ids = torch.randint(330, (3, 48), generator=torch.Generator().manual_seed(7))
model = AutoModelForCausalLM.from_pretrained(ours).eval()
other = AutoModelForCausalLM.from_pretrained(reference).eval()
with torch.no_grad():
    error = float((model(ids).logits - other(ids).logits).abs().max())
    # The likeliest token of all is now a padded row: only the generation settings keep it out.
    model.transformer.wte.weight[380:] *= 100
    model.transformer.ln_f.bias += model.transformer.wte.weight[381]
    free = model.generate(ids[:1], max_new_tokens=8, do_sample=False, suppress_tokens=None, eos_token_id=None)
    kept = model.generate(ids[:1], max_new_tokens=8, do_sample=False, eos_token_id=None)
import sentencepiece
tokenizer = AutoTokenizer.from_pretrained(ours)
source = sentencepiece.SentencePieceProcessor(model_file=spm)
texts = [" a boy", "\\nhe  said", "<s>親譲り🍣", "town <EOD>"]
print(json.dumps({"error": error, "free": free[0, 48:].tolist(), "kept": kept[0, 48:].tolist(),
    "same_ids": all(tokenizer(t, add_special_tokens=False)["input_ids"] == source.encode(t) for t in texts),
    "eos": tokenizer.eos_token_id, "type": type(model).__name__}))
"""


@pytest.fixture(scope="session")
def tiny(env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a random model: see tiny_model.py."""
    return shared_folder(env_python, tmp_path_factory)


def stranger(python: Path, *arguments: Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-c", STRANGER, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def convert(run_stage: RunStage, tiny: Path, output: Path, **more: Any) -> Any:
    inputs = more.pop("inputs", (str(tiny / "model"),))
    tokenizer = more.pop("tokenizer", tiny / "tokenizer.model")
    return run_stage("convert", inputs=inputs, tokenizer=tokenizer, output=output, **more)


def refused(run_stage: RunStage, tiny: Path, tmp_path: Path, **more: Any) -> Any:
    """The first problem of a conversion that must fail and leave nothing."""
    with pytest.raises(StageFailed) as failure:
        convert(run_stage, tiny, tmp_path / "converted", **more)
    assert not (tmp_path / "converted").exists()
    return failure.value.error.problems[0]


def test_a_converted_model_is_the_same_model(run_stage: RunStage, env_python: Path, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    result = convert(run_stage, tiny, output)
    assert result.metrics["vocab_size"] + result.metrics["padded_rows"] == 384
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "tokenizer.model",
    }  # fmt: skip
    assert (output / "tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
    config = json.loads((output / "config.json").read_text())
    assert {key: config[f"{key}_token_id"] for key in ("bos", "eos", "pad")} == {"bos": 1, "eos": EOD, "pad": 3}
    assert config["vocab_size"] == 384
    assert "n_ctx" not in config
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation["eos_token_id"] == EOD
    assert generation["suppress_tokens"] == list(range(result.metrics["vocab_size"], 384))

    seen = stranger(env_python, output, tiny / "model", tiny / "tokenizer.model")
    assert seen["error"] <= 1e-4
    assert seen["type"] == "GPT2LMHeadModel"
    assert seen["eos"] == EOD
    assert seen["same_ids"]
    assert any(each >= 380 for each in seen["free"]), "the trap of this test does not work"
    assert all(each < result.metrics["vocab_size"] for each in seen["kept"])

    again = convert(run_stage, tiny, output)
    assert again.state == "up-to-date"


def test_the_recipes_own_model_is_found(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "output" / "custom"
    shutil.copytree(tiny / "model", root / "pretrain" / "model")
    (root / "tokenizer").mkdir()
    shutil.copy(tiny / "tokenizer.model", root / "tokenizer")
    result = run_stage("convert")
    assert Path(result.run_dir) == root / "convert"
    assert (root / "convert" / "model" / "tokenizer.json").is_file()


def test_a_trainer_checkpoint_is_a_checkpoint(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-200"
    shutil.copytree(tiny / "model", checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"not read")
    convert(run_stage, tiny, tmp_path / "converted", inputs=(str(checkpoint),))
    assert not (tmp_path / "converted" / "optimizer.pt").exists()
    (tmp_path / "run" / "checkpoint-1000").mkdir()
    problem = refused(run_stage, tiny, tmp_path / "other", inputs=(str(tmp_path / "run"),))
    assert problem.code == "convert.not-a-model"
    assert "checkpoint-1000" in problem.hint


def test_a_plan_needs_nothing_to_exist(tmp_path: Path) -> None:
    config = resolve("")
    made = plan("convert", config, Sources(root=tmp_path / "none"))
    assert made.inputs["checkpoint"] == tmp_path / "none" / "pretrain" / "model"
    assert not (tmp_path / "none").exists()
    other = resolve("", ["pretrain.log_interval=3", "upload.prompt=x"])
    assert plan("convert", other, Sources(root=tmp_path / "none")) == made
    with pytest.raises(UcllmError, match="tokenizer"):
        plan("convert", config, Sources(root=tmp_path, inputs=("checkpoint",)))


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scramble_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def broken_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": ')


def another_kind(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama"}')


def fewer_layers(model: Path) -> None:
    change(model, n_layer=1)


def more_layers(model: Path) -> None:
    change(model, n_layer=3)


def wider(model: Path) -> None:
    change(model, n_positions=128)


def change(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def not_numbers(model: Path) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\x00\x00\xc0\x7f")  # the last fp32 is NaN


def megatron(model: Path) -> None:
    shutil.rmtree(model)
    (model / "global_step20").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, ("weights.damaged", "damaged")),
        (scramble_header, ("weights.damaged", "damaged")),
        (not_numbers, ("weights.not-finite", "not numbers")),
        (no_weights, ("convert.not-a-model", "no model.safetensors")),
        (no_config, ("convert.not-a-model", "no config.json")),
        (broken_config, ("convert.not-a-model", "config.json is damaged")),
        (another_kind, ("convert.not-a-model", "llama")),
        (fewer_layers, ("convert.not-a-model", "has not")),
        (more_layers, ("convert.not-a-model", "missing")),
        (wider, ("convert.not-a-model", "")),
        (megatron, ("checkpoint.incomplete", "Megatron")),
    ],
)
def test_what_is_no_model_is_refused(
    run_stage: RunStage, tiny: Path, tmp_path: Path, spoil: Callable[[Path], None], expected: tuple[str, str]
) -> None:
    shutil.copytree(tiny / "model", tmp_path / "model")
    spoil(tmp_path / "model")
    problem = refused(run_stage, tiny, tmp_path, inputs=(str(tmp_path / "model"),))
    assert problem.code == expected[0]
    assert expected[1] in problem.message
    assert problem.hint


def test_a_file_is_no_folder(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    problem = refused(run_stage, tiny, tmp_path, inputs=(str(tiny / "model" / "model.safetensors"),))
    assert problem.code == "convert.not-a-model"


def test_more_ids_than_rows(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    problem = refused(run_stage, tiny, tmp_path, inputs=(str(tiny / "small_model"),))
    assert problem.code == "convert.tokenizer-too-large"
    assert "128 rows" in problem.message


def record(home: Path, stage: str, inputs: dict[str, Path], outputs: dict[str, Path]) -> None:
    """A manifest as training writes it."""
    runs.write_manifest(
        home,
        {
            "manifest_version": runs.MANIFEST_VERSION,
            "stage": stage,
            "status": "complete",
            "fingerprint": stage,
            "config": {},
            "inputs": {name: runs.describe(path) for name, path in inputs.items()},
            "outputs": {name: runs.describe(path) for name, path in outputs.items()},
            "metrics": {},
        },
    )


def test_what_the_pretraining_recorded_is_held_against_it(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "pretrain" / "model", tmp_path / "tokenizer.model"
    shutil.copytree(tiny / "model", model)
    shutil.copy(tiny / "tokenizer.model", tokenizer)
    record(tmp_path / "pretrain", "pretrain", {"tokenizer": tokenizer}, {"model": model})
    convert(run_stage, tiny, tmp_path / "good", inputs=(str(model),))

    other = tmp_path / "other.model"
    other.write_bytes(tokenizer.read_bytes() + b"\x00")
    problem = refused(run_stage, tiny, tmp_path, inputs=(str(model),), tokenizer=other)
    assert problem.code == "convert.other-tokenizer"

    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # one bit of one weight: the file is still a whole one
    weights.write_bytes(content)
    problem = refused(run_stage, tiny, tmp_path, inputs=(str(model),))
    assert problem.code == "input.altered"


def test_what_is_no_tokenizer_is_refused(run_stage: RunStage, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.model").write_bytes(b"no model")
    problem = refused(run_stage, tiny, tmp_path, tokenizer=tmp_path / "broken.model")
    assert problem.code.startswith("tokenizer")
