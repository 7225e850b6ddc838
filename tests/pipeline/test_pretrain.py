"""Step 2, second half: it learns, survives a kill at any moment, and refuses what it cannot train on."""

from __future__ import annotations

import json
import math
import shutil
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.estimate import estimate
from pipeline.pretrain import plan
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, train
from tests.pipeline.conftest import Killer, Quiet, Steps

SETTINGS = (
    "tokenizer.vocab_size=320", "corpus.lines_per_document=4", "model.layers=1", "model.hidden_size=32",
    "model.heads=2", "pretrain.seq_length=32", "pretrain.micro_batch_size=4", "pretrain.global_batch_size=8",
    "pretrain.steps=24", "pretrain.warmup_steps=2", "pretrain.learning_rate=0.01", "pretrain.log_interval=5",
    "pretrain.eval_interval=8", "pretrain.save_interval=4", "pretrain.keep_checkpoints=2",
    "pretrain.validation_fraction=0.2",
)  # fmt: skip


def sources(tmp_path: Path, corpus: tuple[Path, Path], name: str = "run") -> Sources:
    prefix, tokenizer = corpus
    return Sources(root=tmp_path / name, inputs=(str(prefix),), tokenizer=tokenizer)


def configuration(folder: Path, *settings: str) -> Config:
    """The defaults and :data:`SETTINGS`, whatever the recipes that come with ucllm say."""
    recipe = folder / "own.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text("", encoding="utf-8")
    return resolve(str(recipe), [*SETTINGS, *settings])


def pretrain(
    environment: Environment,
    sources: Sources,
    *settings: str,
    observer: Any = None,
    force: bool = False,
) -> StageResult:
    planned = plan("pretrain", configuration(sources.root, *settings), sources)
    return train([planned], environment, observer or Quiet(), force=force)[0]


def history(result: StageResult) -> dict[str, Any]:
    return dict(json.loads((Path(result.run_dir) / "history.json").read_text(encoding="utf-8")))


def saved(home: Path) -> list[int]:
    """The steps of the whole checkpoints."""
    return sorted(
        int(each.parent.name.rpartition("-")[2]) for each in home.glob("checkpoints/*/checkpoint-*/complete.json")
    )


@pytest.fixture(scope="module")
def undisturbed(
    corpus: tuple[Path, Path], env_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageResult, Quiet]:
    folder = tmp_path_factory.mktemp("undisturbed")
    quiet = Quiet()
    result = pretrain(Environment(env_python, folder / ".ucllm", "test"), sources(folder, corpus), observer=quiet)
    return result, quiet


def test_learns_more_than_word_frequencies(undisturbed: tuple[StageResult, Quiet]) -> None:
    result, quiet = undisturbed
    metrics, made = result.metrics, history(result)
    assert metrics["loss_first"] == pytest.approx(math.log(384), abs=0.3)
    assert metrics["val_loss"] < metrics["val_unigram"] < metrics["loss_first"]
    assert metrics["val_loss"] == made["validation"][-1]["loss"]
    assert metrics["tokens_trained"] == 24 * 8 * 32
    assert metrics["tokens_per_second"] > 0
    assert metrics["sample"].startswith("Once upon a time,")
    assert [each["step"] for each in made["validation"]] == [8, 16, 24]
    assert made["train"][-1]["step"] == 24
    assert made["train"][-1]["learning_rate"] < made["train"][1]["learning_rate"]
    assert any("Computing in" in note for note in quiet.notes)


def test_what_is_written(undisturbed: tuple[StageResult, Quiet]) -> None:
    home = Path(undisturbed[0].run_dir)
    shape = json.loads((home / "model" / "config.json").read_text())
    assert (shape["vocab_size"], shape["n_positions"], shape["n_embd"], shape["n_layer"]) == (384, 32, 32, 1)
    assert shape["activation_function"] == "gelu_new"
    assert (shape["bos_token_id"], shape["eos_token_id"], shape["pad_token_id"]) == (1, 6, 3)
    assert (home / "model" / "model.safetensors").is_file()
    words = "".join(ET.parse(home / "loss.svg").getroot().itertext())  # noqa: S314  our own file
    assert "validation" in words
    assert "word frequencies alone" in words
    assert len(list((home / "tensorboard").glob("events.*"))) == 1
    assert saved(home) == [20, 24]


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(
    undisturbed: tuple[StageResult, Quiet], corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    whole = undisturbed[0]
    killer = Killer(lambda home: bool(saved(home)) and saved(home)[-1] >= 8)
    with pytest.raises(StageFailed, match="pretrain"):
        pretrain(environment, sources(tmp_path, corpus), observer=killer)
    assert killer.killed
    again = Steps()
    result = pretrain(environment, sources(tmp_path, corpus), observer=again)
    start = next(int(note.split()[-1][:-1]) for note in again.notes if note.startswith("Continuing from step"))
    assert 8 <= start < 24
    assert again.steps[0] == start + 1
    for name in ("loss_first", "loss_last", "val_loss"):
        assert result.metrics[name] == pytest.approx(whole.metrics[name], abs=1e-6), name
    for kind in ("train", "validation"):
        points, expected = ([(each["step"], each["loss"]) for each in history(one)[kind]] for one in (result, whole))
        assert [step for step, _loss in points] == [step for step, _loss in expected]
        assert [loss for _step, loss in points] == pytest.approx([loss for _step, loss in expected], abs=1e-6)
    assert len(list((Path(result.run_dir) / "tensorboard").glob("events.*"))) == 1


def interrupted(undisturbed: StageResult, tmp_path: Path) -> Path:
    """A copy of the finished run as a kill before its manifest would have left it; returns its checkpoints."""
    home = tmp_path / "run" / "pretrain"
    shutil.copytree(undisturbed.run_dir, home)
    (home / "manifest.json").unlink()
    return next(home.glob("checkpoints/*"))


def test_unfinished_and_altered_checkpoints_are_named_and_not_used(
    undisturbed: tuple[StageResult, Quiet], corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    folder = interrupted(undisturbed[0], tmp_path)
    altered, half = folder / "checkpoint-24", folder / "checkpoint-23"
    content = bytearray((altered / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (altered / "model.safetensors").write_bytes(bytes(content))
    half.mkdir()
    (half / "model.safetensors").write_bytes(content[:100])
    again = Quiet()
    result = pretrain(environment, sources(tmp_path, corpus), observer=again)
    notes = "\n".join(again.notes)
    assert f"{half} was left unfinished" in notes
    assert f"{altered} is not what was saved" in notes
    assert "Continuing from step 20." in notes
    assert (folder / "damaged-checkpoint-24" / "model.safetensors").read_bytes() == bytes(content)
    assert result.metrics["val_loss"] == pytest.approx(undisturbed[0].metrics["val_loss"], abs=1e-6)


def test_killed_after_the_last_step_it_trains_no_more(
    undisturbed: tuple[StageResult, Quiet], corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    interrupted(undisturbed[0], tmp_path)
    again = Quiet()
    result = pretrain(environment, sources(tmp_path, corpus), observer=again)
    assert "Continuing from step 24." in again.notes
    for name in ("loss_first", "loss_last", "val_loss", "tokens_per_second", "sample"):
        assert result.metrics[name] == undisturbed[0].metrics[name], name


def test_too_short_for_a_sample_names_the_tokens_needed(
    corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, corpus), "pretrain.seq_length=4096", "pretrain.validation_fraction=0.1")
    problems = failure.value.error.problems
    assert [each.code for each in problems] == ["corpus.too-short"] * 2
    assert all("4097" in each.what for each in problems)
    assert "training" in problems[0].what
    assert "validation" in problems[1].what


def test_nothing_held_out_trains_without_validation(
    corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    result = pretrain(environment, sources(tmp_path, corpus), "pretrain.validation_fraction=0", "pretrain.steps=3")
    assert result.metrics["val_loss"] is None
    assert result.metrics["val_unigram"] is None
    assert history(result)["validation"] == []


def test_corpus_of_another_tokenizer_is_refused(
    corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    from pipeline import indexed_dataset

    prefix = tmp_path / "other_text_document"
    writer = indexed_dataset.Writer(prefix, "<u2")
    for _number in range(10):
        writer.add_document([5, 1999] * 50)
    writer.finish()
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, (prefix, corpus[1])))
    problem = failure.value.error.problems[0]
    assert problem.code == "corpus.other-tokenizer"
    assert "1999" in problem.why


def test_damaged_index_is_refused(corpus: tuple[Path, Path], environment: Environment, tmp_path: Path) -> None:
    prefix = tmp_path / "cut_text_document"
    prefix.with_name("cut_text_document.bin").write_bytes(
        corpus[0].with_name(corpus[0].name + ".bin").read_bytes()[:-2]
    )
    prefix.with_name("cut_text_document.idx").write_bytes(corpus[0].with_name(corpus[0].name + ".idx").read_bytes())
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, (prefix, corpus[1])))
    assert failure.value.error.problems[0].code == "corpus.damaged"


def test_loss_that_is_not_a_number_is_an_error(
    corpus: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    with pytest.raises(StageFailed) as failure:
        pretrain(
            environment, sources(tmp_path, corpus), "pretrain.learning_rate=1e30", "pretrain.warmup_steps=0",
            "pretrain.log_interval=1", "pretrain.precision=fp32",
        )  # fmt: skip
    assert failure.value.error.problems[0].code == "pretrain.diverged"


def test_fp16_without_a_gpu_is_refused(corpus: tuple[Path, Path], environment: Environment, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StageFailed) as failure:
        pretrain(environment, sources(tmp_path, corpus), "pretrain.precision=fp16")
    assert failure.value.error.problems[0].code == "pretrain.precision"


def test_estimate_counts_as_training_does(undisturbed: tuple[StageResult, Quiet], tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config.tokenizer.vocab_size = 330
    guess = estimate(config)
    assert guess["parameters"] == undisturbed[0].metrics["parameters"]
    assert guess["tokens"] == undisturbed[0].metrics["tokens_trained"]
    assert min(guess.values()) > 0


def test_plan_reads_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    planned = plan("pretrain", configuration(tmp_path), Sources(root=tmp_path / "absent"))
    assert time.monotonic() - began < 1
    assert planned.inputs["bin"] == tmp_path / "absent" / "corpus" / "corpus_text_document.bin"
    assert "save_interval" not in planned.config["pretrain"]
