"""Step 4 in real child processes: answers and nothing else are learned, a kill costs nothing, bad input is told."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import runs
from pipeline.base_model import on_hub
from pipeline.errors import Problem, UcllmError
from pipeline.finetune import plan
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, train
from tests.fake_hub import FakeHub
from tests.pipeline import tiny_chat, tiny_model
from tests.pipeline.conftest import Killer, Quiet, RunStage, Steps

pytestmark = pytest.mark.usefixtures("one_thread")

EOD = 6  # its id in every tokenizer with the published symbols
SETTINGS = [
    "finetune.epochs=8",
    "finetune.learning_rate=0.02",
    "finetune.micro_batch_size=4",
    "finetune.validation_fraction=0.2",
]
#: What a stranger reads out of the published folder: the loss on the held-out answers, counted token by token.
STRANGER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, pairs = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
total = count = 0
for question, answer in pairs:
    prompt = tokenizer(f"### Human: {question}\\n### Assistant:")["input_ids"]
    ids = tokenizer(f"### Human: {question}\\n### Assistant: {answer}<EOD>")["input_ids"]
    scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    for position in range(len(prompt), len(ids)):
        total -= float(scores[position - 1, ids[position]])
        count += 1
chat = [{"role": "user", "content": pairs[0][0]}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
config, generation = model.config, model.generation_config
print(json.dumps({"loss": total / count, "made": made.tolist(), "text": tokenizer.decode(made),
    "ids": [[each.bos_token_id, each.eos_token_id, each.pad_token_id] for each in (config, generation)],
    "cache": config.use_cache}))
"""


def pairs(count: int = 20) -> list[tuple[str, str]]:
    words = tiny_model.WORDS.split()
    return [(f"{words[n]} the {words[n + 3]}", f"he {words[n % 3]} it") for n in range(count)]


def write(path: Path, items: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": question, "completion": answer}, ensure_ascii=False) for question, answer in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", pairs())


def finetune(run_stage: RunStage, base: object, data: Path, *settings: str, **more: Any) -> StageResult:
    output = data.with_name("tuned")
    return run_stage(
        "finetune", [*SETTINGS, f"finetune.data={data}", *settings], inputs=(str(base),), output=output, **more
    )


def refused(run_stage: RunStage, base: object, data: Path, *settings: str) -> list[Problem]:
    """The problems of a run that must fail; nothing may have been published."""
    with pytest.raises(StageFailed) as caught:
        finetune(run_stage, base, data, *settings)
    assert not data.with_name("tuned").exists()
    return list(caught.value.error.problems)


# --- the tokens ------------------------------------------------------------------------------------------------------


def test_only_answers_and_their_ends_are_learned(chat: Path) -> None:
    shown = json.loads((chat / "tokens.json").read_text(encoding="utf-8"))
    for name, blank in (("base", ""), ("gpt2", " ")):
        for item, conversation in zip(shown[name], tiny_chat.CONVERSATIONS):
            answers = [content for role, content in conversation if role == "assistant"]
            learned = [blank + answer + item["eos"] for answer in answers]
            # Decoding drops the blank that SentencePiece puts before a text: the first answer's, not a second one's.
            assert item["answers"][0] == ("" if blank else " ").join(learned)


def test_a_training_example_begins_as_a_generation_does(chat: Path) -> None:
    shown = json.loads((chat / "tokens.json").read_text(encoding="utf-8"))
    for item in [*shown["base"], *shown["gpt2"]]:
        ids, labels, was_cut, _learned = item["examples"][0]
        assert ids == item["whole"], "the template's own tokens"
        assert not was_cut
        for prompt in item["prompts"]:
            assert ids[: len(prompt)] == prompt
            assert labels[len(prompt) - 1] == -100
            assert labels[len(prompt)] == ids[len(prompt)]
        last = len(item["prompts"][-1])
        assert labels[last:] == ids[last:]
        assert all(label in (-100, token) for label, token in zip(labels, ids))


def test_a_cut_takes_from_the_end_and_leaves_positions_alone(chat: Path) -> None:
    shown = json.loads((chat / "tokens.json").read_text(encoding="utf-8"))
    for item in [*shown["base"], *shown["gpt2"]]:
        whole, exact, shorter, question_only = item["examples"]
        assert exact == whole, "as long as the limit is not longer than it"
        assert shorter[0] == whole[0][:-1]
        assert shorter[1] == whole[1][:-1]
        assert shorter[2]
        assert shorter[3] == whole[3] - 1
        assert question_only[3] == 0, "nothing of an answer is left"


def test_the_form_is_the_guides(chat: Path) -> None:
    shown = json.loads((chat / "tokens.json").read_text(encoding="utf-8"))
    assert shown["base"][2]["text"] == (
        "be kind\n\n### Human: who\n### Assistant: a boy<EOD>\n### Human: <EOD> why\n### Assistant: said nothing<EOD>"
    )
    assert shown["gpt2"][0]["text"].startswith("<s>### Human: why"), "this tokenizer begins every text so"


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(
    chat: Path, env_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageResult, Quiet, Path]:
    """A finished run, the notes it made, and its folder: ``base``, ``data.jsonl``, ``tuned``, ``tuned.ucllm``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    quiet = Quiet()
    result = train_in(folder, chat, env_python, quiet)
    return result, quiet, folder


def train_in(folder: Path, chat: Path, python: Path, quiet: Quiet) -> StageResult:
    sources = Sources(root=folder, inputs=(str(chat / "base"),), output=folder / "tuned")
    data = write(folder / "data.jsonl", pairs())
    config = resolve("botchan-tiny", [*SETTINGS, f"finetune.data={data}"])
    environment = Environment(python, folder / ".ucllm", "test")
    return train([plan("finetune", config, sources)], environment, quiet)[0]


def test_it_learns_what_a_stranger_can_measure(undisturbed: tuple[StageResult, Quiet, Path], env_python: Path) -> None:
    result, _quiet, folder = undisturbed
    metrics = result.metrics
    assert metrics["conversations"] == 20
    assert metrics["held_out"] == 4
    assert metrics["steps"] == 32  # 16 conversations, 4 a step, 8 epochs
    assert metrics["answer_loss"] < metrics["answer_loss_base"] - 1
    assert metrics["tokens_per_second"] > 0
    assert metrics["sample"]["answer"].startswith("he")
    assert metrics["sample"]["question"] in [question for question, _answer in pairs()[16:]]
    versions = json.loads((Path(result.run_dir) / "manifest.json").read_text(encoding="utf-8"))["versions"]
    assert {"torch", "transformers", "trl", "python"} <= set(versions)

    argv = [str(env_python), "-c", STRANGER, str(folder / "tuned"), json.dumps(pairs()[16:])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["loss"] == pytest.approx(metrics["answer_loss"], abs=1e-4)
    assert seen["made"][-1] == EOD, "it learned to end an answer"
    assert len(seen["made"]) < 30
    assert seen["text"].startswith("he")
    assert seen["ids"] == [[1, EOD, 3]] * 2, "those of the tokenizer, whatever the base model said"
    assert seen["cache"]


def test_what_lies_in_the_folders(undisturbed: tuple[StageResult, Quiet, Path], chat: Path) -> None:
    _result, _quiet, folder = undisturbed
    model, home = folder / "tuned", folder / "tuned.ucllm" / "finetune"
    assert sorted(path.name for path in model.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (model / name).read_bytes() == (chat / "base" / name).read_bytes(), "the tokenizer stays as it was"
    history = json.loads((home / "history.json").read_text(encoding="utf-8"))
    assert [each["step"] for each in history["held_out"]] == [0, *range(4, 33, 4)]
    assert history["train"][-1]["step"] == 32
    assert (home / "loss.svg").read_text(encoding="utf-8").count("<polyline") == 2
    assert len(list((home / "tensorboard").glob("events.*"))) == 1


def test_nothing_is_done_twice(undisturbed: tuple[StageResult, Quiet, Path], chat: Path, env_python: Path) -> None:
    _result, _quiet, folder = undisturbed
    assert train_in(folder, chat, env_python, Quiet()).state == "up-to-date"


def saved_ten(home: Path) -> bool:
    """Whether a checkpoint of at least step 10 is whole."""
    steps = [int(path.parent.name.rpartition("-")[2]) for path in home.glob("checkpoints/*/*/complete.json")]
    return max(steps, default=0) >= 10


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(
    undisturbed: tuple[StageResult, Quiet, Path], chat: Path, env_python: Path, tmp_path: Path
) -> None:
    whole, _quiet, folder = undisturbed
    killer = Killer(saved_ten)
    with pytest.raises(StageFailed, match="finetune"):
        train_in(tmp_path, chat, env_python, killer)
    assert killer.killed
    # What a kill in the middle of saving leaves, and must not be continued from.
    checkpoints = next((tmp_path / "tuned.ucllm" / "finetune" / "checkpoints").iterdir())
    half = checkpoints / "checkpoint-31"
    half.mkdir()
    (half / "trainer_state.json").write_text("{", encoding="utf-8")
    again = Steps()
    result = train_in(tmp_path, chat, env_python, again)
    assert 10 < again.steps[0] < 30, "what was done is not done again"
    notes = "\n".join(again.notes)
    assert "checkpoint-31 was left unfinished" in notes
    assert "Continuing from step" in notes
    assert "Continuing from step 3" not in notes
    for name in ("answer_loss", "answer_loss_base"):
        assert result.metrics[name] == pytest.approx(whole.metrics[name], abs=1e-5), name
    histories = [
        json.loads((each / "tuned.ucllm" / "finetune" / "history.json").read_text()) for each in (folder, tmp_path)
    ]
    for kind in ("train", "held_out"):
        expected, points = ([(each["step"], each["loss"]) for each in history[kind]] for history in histories)
        assert [step for step, _loss in points] == [step for step, _loss in expected]
        assert [loss for _step, loss in points] == pytest.approx([loss for _step, loss in expected], abs=1e-5)


def test_long_conversations_are_cut_or_left_out_and_counted(run_stage: RunStage, chat: Path, tmp_path: Path) -> None:
    long = "boy " * 200
    data = write(tmp_path / "data.jsonl", [*pairs(4), ("who", long), (long, "me"), (long, "you")])
    quiet = Quiet()
    result = finetune(
        run_stage, chat / "gpt2", data, "finetune.epochs=1", "finetune.validation_fraction=0", observer=quiet
    )
    assert (result.metrics["conversations"], result.metrics["cut"], result.metrics["dropped"]) == (5, 1, 2)
    assert result.metrics["answer_loss"] is None
    notes = "\n".join(quiet.notes)
    assert f"1 of 7 conversations are longer than {tiny_chat.POSITIONS} tokens" in notes
    assert "2 of 7 conversations were left out" in notes
    assert "Nothing is held out" in notes
    assert "own chat template is replaced" in notes


def test_a_loss_that_does_not_fall_is_a_warning(run_stage: RunStage, chat: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [*[("who", "he")] * 8, *[("who", "three dumplings in the water")] * 4])
    quiet = Quiet()
    result = finetune(run_stage, chat / "base", data, "finetune.validation_fraction=0.3", observer=quiet)
    assert result.state == "ran"
    assert result.metrics["answer_loss"] > result.metrics["answer_loss_base"]
    assert any(note.startswith("Warning: the loss on held-out answers did not fall") for note in quiet.notes)


def test_a_training_that_diverges_is_told(run_stage: RunStage, chat: Path, data: Path) -> None:
    found = refused(run_stage, chat / "base", data, "finetune.learning_rate=1e30")
    assert [problem.code for problem in found] == ["finetune.diverged"]
    assert "learning_rate" in found[0].hint


# --- what is refused -------------------------------------------------------------------------------------------------


def test_bad_data_is_told_before_the_model_is_loaded(run_stage: RunStage, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n{"prompt": "a"}\n{\n', encoding="utf-8")
    (tmp_path / "no-model").mkdir()
    found = refused(run_stage, tmp_path / "no-model", path)
    assert [problem.code for problem in found] == ["data.bad-line"] * 3
    assert [str(number) in problem.what for number, problem in enumerate(found, 1)] == [True] * 3


def test_a_length_that_the_model_cannot_read(run_stage: RunStage, chat: Path, data: Path) -> None:
    config = resolve("botchan-tiny", [*SETTINGS, f"finetune.data={data}"])
    config.finetune.max_seq_length = tiny_chat.POSITIONS + 1
    with pytest.raises(StageFailed) as caught:
        run_stage("finetune", config=config, inputs=(str(chat / "base"),), output=data.with_name("tuned"))
    problem = caught.value.error.problems[0]
    assert problem.code == "finetune.too-long"
    assert str(tiny_chat.POSITIONS) in problem.what


def test_no_answer_within_the_length(run_stage: RunStage, chat: Path, data: Path) -> None:
    found = refused(run_stage, chat / "base", data, "finetune.max_seq_length=12")
    assert [problem.code for problem in found] == ["finetune.nothing-left"]


@pytest.mark.parametrize("damage", ["weights", "no tokenizer", "a key", "json"])
def test_a_folder_that_is_no_model(run_stage: RunStage, chat: Path, data: Path, tmp_path: Path, damage: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(chat / "base", base)
    weights = base / "model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no tokenizer":
        for path in base.glob("*token*"):
            path.unlink()
    elif damage == "a key":
        content = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps({**content, "n_layer": 2}), encoding="utf-8")
    else:
        (base / "config.json").write_text("{", encoding="utf-8")
    found = refused(run_stage, base, data)
    assert len(found) == 1
    assert str(base) in found[0].what
    assert found[0].code != "stage.died"


# --- the plan --------------------------------------------------------------------------------------------------------


def planned(tmp_path: Path, *settings: str, **sources: Any) -> runs.StagePlan:
    return plan("finetune", resolve("botchan-tiny", list(settings)), Sources(root=tmp_path / "output", **sources))


def test_the_recipes_plan_reads_nothing(tmp_path: Path) -> None:
    found = planned(tmp_path, dataset=tmp_path / "none.txt")
    root = tmp_path / "output"
    assert found.inputs == {"model": root / "convert" / "model", "text 1": tmp_path / "none.txt"}
    assert found.outputs["model"] == root / "finetune" / "model"
    assert list(tmp_path.iterdir()) == []


def test_only_what_decides_the_result_is_in_the_plan(tmp_path: Path) -> None:
    text = tmp_path / "none.txt"
    first = planned(tmp_path, dataset=text)
    assert planned(tmp_path, "pretrain.log_interval=3", "upload.prompt=x", dataset=text).config == first.config
    assert planned(tmp_path, "finetune.seed=3", dataset=text).config != first.config
    a, b = (planned(tmp_path, f"finetune.data={tmp_path}/{name}.jsonl") for name in "ab")
    assert a.config == b.config, "where the data lies decides nothing"
    assert a.inputs["data"] == tmp_path / "a.jsonl"


def test_a_model_of_ones_own_needs_data(tmp_path: Path) -> None:
    with pytest.raises(UcllmError) as caught:
        planned(tmp_path, dataset=tmp_path / "none.txt", inputs=(str(tmp_path),))
    assert "--data" in caught.value.problems[0].hint


def test_what_means_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "here").mkdir()
    for name in ("gpt2", "owner/name", "owner/name@v1.0", "owner/n.a_me-2@refs/pr/1"):
        assert on_hub(name), name
    for name in ("owner/here", "./name", "/owner/name", "~/name", "a/b/c", "owner/", "名前", "", str(tmp_path)):
        assert not on_hub(name), name


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running stand-in Hub that the stage's process finds as a user's would: by variables."""
    for name in ("HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub(token="hf_test", user="tester") as server:
        for name, value in server.env(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield server
    assert server.errors == []
    assert server.unknown == []
    assert server.faults.pending == 0


def test_a_model_named_on_the_hub(run_stage: RunStage, chat: Path, data: Path, hub: FakeHub) -> None:
    files = {path.name: path.read_bytes() for path in (chat / "base").iterdir()}
    repo = hub.add_repo("tester/tiny", {**files, "model.onnx": b"x", "onnx/model.safetensors": b"x"}, private=True)
    hub.fail_next(1, 503, "resolve/.*config.json")
    hub.cut_next(1, "model.safetensors", when="body")
    quiet = Quiet()
    result = finetune(run_stage, "tester/tiny", data, observer=quiet)
    commit = repo.commits[-1].oid
    assert result.metrics["base_model"] == {"name": "tester/tiny", "commit": commit}
    assert result.metrics["answer_loss"] < result.metrics["answer_loss_base"]
    assert (data.with_name("tuned") / "tokenizer.model").read_bytes() == files["tokenizer.model"]
    assert hub.count("onnx") == 0
    assert hub.count("^(POST|PUT|DELETE)") == 0
    hub.requests.clear()
    assert finetune(run_stage, "tester/tiny", data).state == "up-to-date"
    assert hub.requests == []


def test_a_name_that_is_nowhere(run_stage: RunStage, data: Path, hub: FakeHub) -> None:
    found = refused(run_stage, "tester/none", data)
    assert [problem.code for problem in found] == ["base.not-found"]
    assert "neither a folder here nor a model on the Hub" in found[0].why
    assert hub.count("tester/none") > 0


def test_offline_there_is_only_the_cache(
    run_stage: RunStage, data: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = refused(run_stage, "tester/tiny", data)
    assert [problem.code for problem in found] == ["base.not-fetched"]
    assert hub.requests == []
