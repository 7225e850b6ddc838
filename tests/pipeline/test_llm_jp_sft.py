"""Engine ``llm-jp-sft`` with a stand-in for its script: what it is told, what it gets, kill and stop, bad data.

The script itself is tested in test_llm_jp_sft_real.py, which needs the guide's environment.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat import Example
from pipeline.config import Config
from pipeline.engines import llm_jp_sft, llm_jp_sft_data, llm_jp_sft_run
from pipeline.errors import Problem
from pipeline.finetune import plan
from pipeline.launch import Launch, Machines, cluster
from pipeline.recipe import resolve
from pipeline.runs import StagePlan
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, train
from tests.pipeline.conftest import Killer, Quiet, Steps, _child
from tests.pipeline.test_finetune import pairs, write

STAND_IN = Path(__file__).with_name("llm_jp_sft_stand_in")
SETTINGS = (
    "finetune.engine=llm-jp-sft",
    "finetune.epochs=8",
    "finetune.learning_rate=0.02",
    "finetune.micro_batch_size=4",
    "finetune.validation_fraction=0.2",
)


def machines(workspace: Path, compat: str = "", device: str = "cpu", slots: int = 1) -> Machines:
    python = workspace / ".venv" / "bin" / "python"
    return Machines(cluster.load("local"), ("node-0",), slots, device, 29500, workspace, python, ".so", compat=compat)


@pytest.fixture
def workspace(env_python: Path, tmp_path: Path) -> Path:
    """A workspace with a stand-in checkout, and the environment of profile ``cpu`` with a stand-in trl."""
    folder = tmp_path / "ws"
    (folder / "llm-jp-sft").mkdir(parents=True)
    shutil.copyfile(STAND_IN / "train.py", folder / "llm-jp-sft" / "train.py")
    (folder / ".ucllm" / "code").mkdir(parents=True)
    shutil.copyfile(STAND_IN / "trl.py", folder / ".ucllm" / "code" / "trl.py")
    (folder / ".venv").symlink_to(env_python.parents[1])
    return folder


def planned(workspace: Path, base: Path, data: Path, *settings: str, compat: str = "") -> StagePlan:
    sources = Sources(
        root=workspace / "output",
        inputs=(str(base),),
        output=workspace / "tuned",
        machines=machines(workspace, compat),
        code=workspace / ".ucllm" / "code",
    )
    return plan("finetune", resolve("botchan-tiny", [*SETTINGS, f"finetune.data={data}", *settings]), sources)


def run(workspace: Path, made: StagePlan, observer: Quiet | None = None) -> StageResult:
    python = workspace / ".venv" / "bin" / "python"
    path = os.pathsep.join((str(python.parent), os.environ["PATH"]))
    variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    environment = Environment(python, workspace / ".ucllm", "test", variables=variables)
    return train([made], environment, observer or Quiet())[0]


def refused(workspace: Path, made: StagePlan, observer: Quiet | None = None) -> Problem:
    with pytest.raises(StageFailed) as caught:
        run(workspace, made, observer)
    assert not (workspace / "tuned").exists()
    return caught.value.error.problems[0]


def launched(config: Config, where: Machines, **places: Any) -> Launch:
    files = llm_jp_sft.Places(Path("/m"), Path("/d"), Path("/o"), Path("/f"), code=Path("/code"), **places)
    return llm_jp_sft.launch(config, where, files)


# --- the launch ------------------------------------------------------------------------------------------------------


def test_ours_can_be_stopped_and_continued_and_a_published_one_is_as_published(tmp_path: Path) -> None:
    config = resolve("botchan-tiny", list(SETTINGS))
    script = str(tmp_path / "llm-jp-sft" / "train.py")
    ours = launched(config, machines(tmp_path), length=128)
    assert ours.argv[1:3] == ("/code/pipeline/engines/llm_jp_sft_start.py", script)
    assert ours.argv[ours.argv.index("--max_seq_length") + 1] == "128"
    theirs = launched(config, machines(tmp_path, compat="v0.71", device="cuda"), length=128)
    assert theirs.argv[:2] == ("python", script)
    assert not {"--max_seq_length", "--save_strategy", "--seed"} & set(theirs.argv)
    assert "PYTHONUNBUFFERED" not in theirs.env


def test_zero_3_by_accelerate_saves_a_whole_model_and_clips(tmp_path: Path) -> None:
    for zero, whole in ((2, False), (3, True)):
        settings = [*SETTINGS, "finetune.launcher=accelerate", f"parallel.zero={zero}"]
        where = machines(tmp_path, device="cuda", slots=2)
        content = json.loads(launched(resolve("botchan-tiny", settings), where).files["accelerate_config.yaml"])
        assert content["deepspeed_config"]["gradient_clipping"] == 1.0
        assert ("zero3_save_16bit_model" in content["deepspeed_config"]) == whole


def test_as_many_steps_as_the_trainer_makes() -> None:
    def steps(rows: int, processes: int = 1, accumulation: int = 1, epochs: float = 1.0) -> int:
        settings = {"micro_batch_size": 4, "gradient_accumulation_steps": accumulation, "epochs": epochs}
        return llm_jp_sft_run.steps_of(settings, rows, processes)

    assert [steps(17), steps(17, epochs=0.5), steps(17, processes=2)] == [5, 3, 3]
    assert [steps(17, accumulation=2), steps(1, accumulation=8)] == [2, 1]


# --- what is heard and seen ------------------------------------------------------------------------------------------


def test_an_entry_counts_once_however_many_nodes_print_it() -> None:
    heard = llm_jp_sft_run.Heard(start=4)
    for line in (
        "node-0: {'loss': 2.5, 'learning_rate': 1.5e-05, 'epoch': 0.5}",
        "node-1: {'loss': 2.5, 'learning_rate': 1.5e-05, 'epoch': 0.5}",
        "  5%|  | 1/9 [00:01<00:09]{'loss': 2.25, 'grad_norm': 1.0, 'learning_rate': 1e-05, 'epoch': 0.6}",
        "{'train_runtime': 12.5, 'train_loss': 2.0, 'epoch': 1.0}",
    ):
        llm_jp_sft_run.hear_line(line, heard, {"compat": ""}, 8)
    assert [(entry["step"], entry["loss"]) for entry in heard.log] == [(5, 2.5), (6, 2.25)]
    assert heard.seconds == 12.5
    assert [entry["step"] for entry in heard.log if not math.isfinite(entry["loss"])] == []
    llm_jp_sft_run.hear_line("{'loss': nan, 'learning_rate': 1e-05, 'epoch': 0.7}", heard, {"compat": ""}, 8)
    assert heard.diverged
    assert math.isnan(heard.log[-1]["loss"])


def test_a_published_launch_says_only_the_part_of_an_epoch() -> None:
    heard = llm_jp_sft_run.Heard()
    config = {"compat": "v0.71", "finetune": {"epochs": 2.0}}
    llm_jp_sft_run.hear_line("{'loss': 2.5, 'learning_rate': 1e-05, 'epoch': 0.5}", heard, config, 400)
    assert heard.step == 100


def test_what_the_collator_must_count() -> None:
    eos, ignored = 6, -100
    wanted = Example([9, 8, 7, eos, 9, 5, eos], [ignored, ignored, 7, eos, ignored, 5, eos], was_cut=False)

    def seen(*labels: int) -> bool:
        return llm_jp_sft_data.misread(wanted, Example(wanted.input_ids, list(labels), was_cut=False), eos)

    assert not seen(ignored, ignored, 7, eos, ignored, 5, eos)
    assert not seen(ignored, ignored, 7, eos, 9, 5, eos), "what stands between two turns"
    assert seen(*[ignored] * 7)
    assert seen(ignored, ignored, 7, ignored, ignored, 5, eos), "the end is to be learned too"
    assert llm_jp_sft_data.misread(wanted, Example([1], [1], was_cut=False), eos)


# --- the stage -------------------------------------------------------------------------------------------------------


def test_it_trains_and_leaves_what_engine_trl_leaves(workspace: Path, chat: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", pairs())
    result = run(workspace, planned(workspace, chat / "base", data))
    home, metrics = Path(result.run_dir), result.metrics
    assert metrics["answer_loss"] < metrics["answer_loss_base"] - 1
    assert [metrics[name] for name in ("conversations", "held_out", "rows", "steps")] == [20, 4, 16, 32]
    lines = (home / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    question, answer = pairs()[0]
    assert len(lines) == 16, "what is held out is not among it"
    assert json.loads(lines[0]) == {"text": f"### Human: {question}\n### Assistant: {answer}<EOD>"}
    assert sorted(path.name for path in (workspace / "tuned").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    told = json.loads((workspace / "tuned" / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = (workspace / "tuned" / "chat_template.jinja").read_text(encoding="utf-8")
    assert told["chat_template"] == template, "for a transformers that does not know the file"
    history = history_of(result)
    assert [each["step"] for each in history["train"]] == list(range(1, 33))
    assert [each["step"] for each in history["held_out"]] == [0, 32]
    assert (home / "loss.svg").read_text(encoding="utf-8").count("<polyline") == 2
    assert "the weights are torch.float32\n" in (home / "log.txt").read_text(encoding="utf-8")


def history_of(result: StageResult) -> dict[str, Any]:
    return dict(json.loads((Path(result.run_dir) / "history.json").read_text(encoding="utf-8")))


def saved(home: Path) -> list[int]:
    """The steps of the whole checkpoints."""
    found = home.glob("checkpoint/checkpoint-*/complete.json")
    return sorted(int(path.parent.name.partition("-")[2]) for path in found)


def trainers(home: Path) -> list[int]:
    """The processes that train in this run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(home / "checkpoint").encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_killed_in_the_middle_it_continues_to_the_same_end(workspace: Path, chat: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", pairs())
    undisturbed = run(workspace, planned(workspace, chat / "base", data))
    history, weights = history_of(undisturbed), (workspace / "tuned" / "model.safetensors").read_bytes()
    shutil.rmtree(workspace / "tuned")
    shutil.rmtree(workspace / "tuned.ucllm")
    made = planned(workspace, chat / "base", data)
    killer = Killer(lambda home: len(saved(home)) >= 2)
    assert refused(workspace, made, killer).code == "stage.died"
    end = time.monotonic() + 30  # the kernel tells it of the death; on a busy machine that takes a moment
    while trainers(made.home) and time.monotonic() < end:
        time.sleep(0.05)
    assert not trainers(made.home), "what it started died with it"
    start = saved(made.home)[-1]
    steps = Steps()
    result = run(workspace, made, steps)
    assert f"Continuing from step {start}." in steps.notes
    assert min(steps.steps) > start
    assert history_of(result) == history
    assert (workspace / "tuned" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_no_checkpoint(workspace: Path, chat: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", pairs())
    made = planned(workspace, chat / "base", data, "finetune.learning_rate=1e30")
    problem = refused(workspace, made)
    assert problem.code == "finetune.diverged"
    step = int(problem.what.rstrip(".").rpartition(" ")[2])
    assert all(number < step for number in saved(made.home))


def test_asked_to_stop_it_saves_and_ends(workspace: Path, chat: Path, tmp_path: Path) -> None:
    class Stopper(Steps):
        def event(self, plan: StagePlan, event: Any) -> None:
            before = len(self.steps)
            super().event(plan, event)
            if before == 0 and self.steps:
                os.kill(_child(plan.home), signal.SIGTERM)

    data = write(tmp_path / "data.jsonl", pairs())
    made = planned(workspace, chat / "base", data, "finetune.epochs=60")
    problem = refused(workspace, made, Stopper())
    assert problem.code == "finetune.stopped"
    step = saved(made.home)[-1]
    assert 1 <= step < 240
    assert f"checkpoint-{step}" in problem.why


def test_a_script_that_fails_is_told_with_its_log(workspace: Path, chat: Path, tmp_path: Path) -> None:
    made = planned(workspace, chat / "base", write(tmp_path / "data.jsonl", [*pairs(5), ("RAISE", "it")] * 2))
    problem = refused(workspace, made)
    assert problem.code == "finetune.engine-failed"
    assert problem.what == "llm-jp-sft ended with exit code 1."
    assert problem.why == "RuntimeError: the stand-in was told to fail"
    assert str(made.home / "log.txt") in problem.hint


def _no_pad(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["pad_token"]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "change", "code", "part"),
    [
        ([("who", "### Human: me")], None, "finetune.templates", "1 of 21 conversations"),
        ([("who " * 200, "a boy")], None, "finetune.too-long", "1 conversations are longer than the model"),
        ([], _no_pad, "finetune.no-pad", "no token to fill up a batch"),
    ],
    ids=["an answer with a marker", "longer than the model", "a tokenizer without pad"],
)
def test_what_would_be_learned_wrongly_is_refused(
    workspace: Path,
    chat: Path,
    tmp_path: Path,
    more: list[tuple[str, str]],
    change: Callable[[Path], None] | None,
    code: str,
    part: str,
) -> None:
    shutil.copytree(chat / "base", tmp_path / "base")
    if change:
        change(tmp_path / "base")
    data = write(tmp_path / "data.jsonl", [*more, *pairs(), *[("who", "a boy")] * 5])
    made = planned(workspace, tmp_path / "base", data)
    problem = refused(workspace, made)
    assert problem.code == code
    assert part in problem.what
    assert not (made.home / "launch").exists(), "nothing was started"


def test_an_environment_whose_trl_is_too_new_is_refused(workspace: Path, chat: Path, tmp_path: Path) -> None:
    (workspace / ".ucllm" / "code" / "trl.py").write_text('__version__ = "99"\n', encoding="utf-8")
    problem = refused(workspace, planned(workspace, chat / "base", write(tmp_path / "data.jsonl", pairs())))
    assert problem.code == "finetune.trl"
    assert "--engine trl" in problem.hint
