"""The upload stages in real child processes, against a stand-in Hub: complete, tried before sent, and discreet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import runs
from pipeline.convert import plan as plan_convert
from pipeline.errors import UcllmError
from pipeline.hub import retried
from pipeline.provenance import without_paths
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, train
from pipeline.upload import plan
from tests.fake_hub import FakeHub

from .conftest import Quiet, RunStage
from .tiny_model import shared_folder

CARD_SETTINGS = ["data.dataset=botchan", "upload.prompt=who", "upload.pretrained_repo=someone/base"]

TOKEN = "hf_" + "secretsecret"
COMPLETE = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}### Human: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def converted(env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of tiny_model.py, converted: made once; tests copy what they change."""
    folder = tmp_path_factory.getbasetemp() / "tiny-converted"
    if not folder.exists():
        tiny = shared_folder(env_python, tmp_path_factory)
        state = tmp_path_factory.mktemp("state")
        sources = Sources(state, inputs=(str(tiny / "model"),), tokenizer=tiny / "tokenizer.model", output=folder)
        train([plan_convert("convert", resolve(""), sources)], Environment(env_python, state, "t"), Quiet())
    return folder


@pytest.fixture
def model(converted: Path, tmp_path: Path) -> Path:
    """A model folder of the user's own, of unknown origin."""
    return Path(shutil.copytree(converted, tmp_path / "mine"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home without a login."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hf"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running stand-in Hub that the stage's process finds as a user's would: by variables."""
    with FakeHub(token=TOKEN, user="tester") as server:
        for name, value in server.env(home).items():
            monkeypatch.setenv(name, value)
        yield server
    assert server.errors == []
    assert server.unknown == []
    assert server.faults.pending == 0


def upload(
    run_stage: RunStage, model: Path, *settings: str, stage: str = "upload-pretrained", **more: Any
) -> StageResult:
    return run_stage(stage, [f"upload.{each}" for each in settings], inputs=(str(model),), **more)


def push(run_stage: RunStage, model: Path, *settings: str, repo: str = "tiny", **more: Any) -> StageResult:
    return upload(run_stage, model, f"pretrained_repo={repo}", *settings, publish=True, **more)


def folder_of(result: StageResult) -> Path:
    return Path(result.run_dir) / "upload"


def metadata(folder: Path) -> dict[str, Any]:
    """The YAML block of the card, read by the plainest of readers: ``key: value`` and lists of ``- value``."""
    _before, block, _body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values: dict[str, Any] = {}
    key = ""
    for line in block.splitlines():
        if line.startswith("- "):
            values.setdefault(key, []).append(line[2:])
        else:
            key, _colon, value = line.partition(":")
            if value.strip():
                values[key] = value.strip()
    return values


def sent_nothing(hub: FakeHub) -> bool:
    return not hub.repos and hub.count("^(POST|PUT|DELETE)") == 0


def test_without_a_repository_all_is_ready_and_said(run_stage: RunStage, model: Path, home: Path) -> None:
    del home
    observer = Quiet()
    result = upload(run_stage, model, "prompt=a boy who", observer=observer)
    folder = folder_of(result)
    assert {path.name for path in folder.iterdir()} == COMPLETE
    assert result.metrics["sample"].startswith("a boy who")
    assert result.metrics["max_logit_error"] <= 1e-4
    assert result.metrics["parity_texts"] > 5
    assert result.metrics["pushed"] is False
    command = f"ucllm train upload-pretrained --input {model} --repo NAME"
    assert result.metrics["publish_command"] == command
    assert any(command in note and "hf auth login" in note for note in observer.notes)
    values = metadata(folder)
    assert values["license"] == "other"
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "text-generation"
    assert "base_model" not in values
    assert result.metrics["sample"] in (folder / "README.md").read_text(encoding="utf-8")
    assert upload(run_stage, model, "prompt=a boy who").state == "up-to-date"


def record(home: Path, stage: str, inputs: dict[str, Path], outputs: dict[str, Path], **metrics: Any) -> None:
    """A manifest as training writes it."""
    manifest = {
        "manifest_version": runs.MANIFEST_VERSION,
        "stage": stage,
        "status": "complete",
        "fingerprint": stage,
        "config": {stage: {"steps": 300, "learning_rate": 0.001}, "file": "/home/someone/data.jsonl"},
        "inputs": {name: runs.describe(path) for name, path in inputs.items()},
        "outputs": {name: runs.describe(path) for name, path in outputs.items()},
        "argv": ["/home/someone/bin/python"],
        "seconds": 1.5,
        "metrics": metrics,
    }
    runs.write_manifest(home, manifest)


@pytest.fixture
def recipe_root(converted: Path, tmp_path: Path) -> Path:
    """The run directories of a recipe up to the fine-tuning, with manifests that name each other."""
    root = tmp_path / "output" / "custom"
    text = tmp_path / "botchan.txt"
    text.write_text("Because of an hereditary recklessness", encoding="utf-8")
    tokenizer = root / "tokenizer" / "tokenizer.model"
    tokenizer.parent.mkdir(parents=True)
    shutil.copy(converted / "tokenizer.model", tokenizer)
    models = {stage: root / stage / "model" for stage in ("pretrain", "convert", "finetune")}
    for folder in models.values():
        shutil.copytree(converted, folder)
    (models["finetune"] / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (models["finetune"] / "training_args.bin").write_bytes(b"pickle of private things")
    record(tokenizer.parent, "tokenizer", {"text": text}, {"model": tokenizer})
    record(root / "pretrain", "pretrain", {"tokenizer": tokenizer}, {"model": models["pretrain"]}, val_loss=4.25)
    record(root / "convert", "convert", {"checkpoint": models["pretrain"]}, {"model": models["convert"]})
    record(root / "finetune", "finetune", {"model": models["convert"]}, {"model": models["finetune"]}, answer_loss=2.5)
    return root


def test_the_recipes_card_tells_where_the_model_is_from(
    run_stage: RunStage, recipe_root: Path, tmp_path: Path, home: Path
) -> None:
    del home
    result = run_stage("upload-finetuned", CARD_SETTINGS)
    assert Path(result.run_dir) == recipe_root / "upload-finetuned"
    folder = folder_of(result)
    assert {path.name for path in folder.iterdir()} == COMPLETE | {"chat_template.jinja", "training_manifest.json"}
    assert "### Human: who" in result.metrics["sample"]
    values = metadata(folder)
    assert values == {
        "language": "en",
        "license": "other",
        "license_name": "project-gutenberg",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ucllm", "gpt2", "sft"],
        "datasets": ["botchan"],
        "base_model": "someone/base",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| pretrain | val_loss | 4.2500 |" in card
    assert "| finetune | answer_loss | 2.5000 |" in card
    assert "| pretrain | steps | 300 |" in card
    history = json.loads((folder / "training_manifest.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in history["stages"]] == ["tokenizer", "pretrain", "convert", "finetune"]
    assert history["stages"][0]["inputs"]["text"]["sha256"] == runs.sha256_file(tmp_path / "botchan.txt")
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
            assert b"someone/data" not in path.read_bytes(), path.name
    assert result.metrics["publish_command"].startswith("ucllm train upload-finetuned --recipe custom --repo")

    record(recipe_root / "finetune", "finetune", {}, {"model": recipe_root / "finetune" / "model"}, tokens_per_second=9)
    again = run_stage("upload-finetuned", CARD_SETTINGS)
    assert again.state == "up-to-date", "other timings of an earlier stage change no model"


def test_a_manifest_of_another_model_is_not_believed(run_stage: RunStage, recipe_root: Path, home: Path) -> None:
    del home
    trained_again = recipe_root / "pretrain" / "model"
    (trained_again / "config.json").write_text("{}", encoding="utf-8")
    record(recipe_root / "pretrain", "pretrain", {}, {"model": trained_again})
    folder = folder_of(run_stage("upload-pretrained"))
    history = json.loads((folder / "training_manifest.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in history["stages"]] == ["convert"]


def test_a_model_altered_after_its_stage_is_refused(run_stage: RunStage, recipe_root: Path, home: Path) -> None:
    del home
    weights = recipe_root / "convert" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StageFailed) as failure:
        run_stage("upload-pretrained")
    assert failure.value.error.problems[0].code == "input.altered"


def test_a_push_puts_the_folder_on_the_hub(run_stage: RunStage, model: Path, hub: FakeHub, tmp_path: Path) -> None:
    result = push(run_stage, model)
    repo = hub.repos["tester/tiny"]
    assert repo.private
    folder = folder_of(result)
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert result.metrics["pushed"] is True
    assert result.metrics["url"] == f"{hub.url}/tester/tiny"
    assert result.metrics["commit"] == repo.commits[-1].oid
    assert "tester/tiny" in (folder / "README.md").read_text(encoding="utf-8")

    count = len(repo.commits)
    again = push(run_stage, model, force=True)
    assert again.metrics["new_commit"] is False
    assert len(repo.commits) == count

    for root, _folders, names in os.walk(tmp_path):
        for name in names:
            assert TOKEN.encode() not in (Path(root) / name).read_bytes(), f"the token is in {name}"


def test_adding_a_repository_runs_the_stage_again(tmp_path: Path) -> None:
    def planned(*settings: str, publish: bool = False) -> runs.StagePlan:
        config = resolve("", list(settings))
        return plan("upload-pretrained", config, Sources(root=tmp_path / "none", publish=publish))

    bare = planned()
    assert bare.config != planned("upload.pretrained_repo=x").config
    assert planned("upload.pretrained_repo=x").config != planned("upload.pretrained_repo=x", publish=True).config
    assert bare.config == planned("upload.finetuned_repo=x", "pretrain.log_interval=3").config
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("fault", [pytest.param("503", marks=pytest.mark.slow), "cut"])
def test_passing_faults_are_outlived(run_stage: RunStage, model: Path, hub: FakeHub, fault: str) -> None:
    routes = (
        "whoami",
        "/repos/create$",
        "GET /api/models/tester/tiny$",
        "/preupload/",
        "/validate-yaml$",
        "/commit/main$",
    )
    for where in routes:
        if fault == "503":
            hub.fail_next(1, 503, where)
        else:
            hub.cut_next(1, where)
    result = push(run_stage, model)
    assert result.metrics["pushed"] is True
    assert hub.repos["tester/tiny"].files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert hub.repos["tester/tiny"].private


def test_a_lost_answer_makes_one_commit(run_stage: RunStage, model: Path, hub: FakeHub) -> None:
    hub.cut_next(1, "/commit/main$", when="reply")
    result = push(run_stage, model)
    repo = hub.repos["tester/tiny"]
    assert result.metrics["commit"] == repo.commits[-1].oid
    assert len(repo.commits) == 2


def refused(run_stage: RunStage, model: Path, *settings: str, **more: Any) -> Any:
    with pytest.raises(StageFailed) as failure:
        push(run_stage, model, *settings, **more)
    return failure.value.error.problems[0]


def test_a_wrong_token_is_found_before_the_work(
    run_stage: RunStage, model: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    problem = refused(run_stage, model)
    assert problem.code == "hub.not-logged-in"
    assert "hf auth login" in problem.hint
    assert "hf_wrong" not in problem.message
    assert sent_nothing(hub)


def test_no_token_at_all(run_stage: RunStage, model: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert refused(run_stage, model).code == "hub.not-logged-in"
    assert hub.requests == []


def test_a_token_that_may_only_read(
    run_stage: RunStage, model: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_token("hf_read", "tester", role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert refused(run_stage, model).code == "hub.forbidden"
    assert hub.repos == {}


def test_somebody_elses_repository(run_stage: RunStage, model: Path, hub: FakeHub) -> None:
    hub.add_repo("other/tiny", private=True)
    assert refused(run_stage, model, repo="other/tiny").code == "hub.forbidden"
    assert len(hub.repos["other/tiny"].commits) == 1


def test_a_public_repository_is_not_filled_by_mistake(run_stage: RunStage, model: Path, hub: FakeHub) -> None:
    hub.add_repo("tester/tiny")
    problem = refused(run_stage, model)
    assert problem.code == "hub.public"
    assert len(hub.repos["tester/tiny"].commits) == 1
    assert push(run_stage, model, "private=false").metrics["pushed"] is True
    assert "model.safetensors" in hub.repos["tester/tiny"].files


def test_offline_mode_and_an_impossible_name(
    run_stage: RunStage, model: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(run_stage, model, repo="no such/na me").code == "hub.bad-name"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(run_stage, model).code == "hub.offline"
    assert hub.requests == []


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    notes: list[str] = []
    monkeypatch.setattr("pipeline.hub.time.sleep", waited.append)

    def call() -> None:
        raise ConnectionError("nobody there")

    with pytest.raises(UcllmError) as failure:
        retried(call, "tester/tiny", notes.append)
    assert failure.value.problems[0].code == "hub.unreachable"
    assert waited == [1, 2, 4, 8]
    assert len(notes) == 4, "each new try is told"


def test_a_fault_of_our_own_is_not_tried_again() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise ValueError("a mistake")

    with pytest.raises(UcllmError) as failure:
        retried(call, "tester/tiny", print)
    assert failure.value.problems[0].code == "hub.refused"
    assert calls == [1]


def not_numbers(model: Path) -> None:
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\x00\x00\xc0\x7f")  # the last fp32 is NaN


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": ')


def shifted_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    # Two ordinary pieces change places: the file loads, and every text with them is read wrongly.
    places = [number for number, (piece, _score) in enumerate(vocabulary) if piece in ("\u2581boy", "\u2581time")]
    one, two = places
    vocabulary[one][0], vocabulary[two][0] = vocabulary[two][0], vocabulary[one][0]
    path.write_text(json.dumps(content), encoding="utf-8")


def no_tokenizer(model: Path) -> None:
    for path in list(model.glob("tokenizer*")):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (not_numbers, ("generation.failed", "not a number")),
        (truncated, ("weights.damaged", "damaged")),
        (broken_tokenizer, ("generation.failed", "fresh process")),
        (shifted_tokenizer, ("generation.failed", "SentencePiece")),
        (no_tokenizer, ("upload.not-a-model", "no tokenizer")),
    ],
)
def test_what_does_not_work_is_not_published(
    run_stage: RunStage, model: Path, hub: FakeHub, spoil: Callable[[Path], None], expected: tuple[str, str]
) -> None:
    spoil(model)
    problem = refused(run_stage, model, "prompt=once upon a time there was a boy")
    assert problem.code == expected[0]
    assert expected[1] in problem.message
    assert sent_nothing(hub)


def test_a_plain_model_of_another_origin(run_stage: RunStage, model: Path, home: Path) -> None:
    """No SentencePiece file, none of the files that only this pipeline writes, a card and private paths of its own."""
    del home
    for name in ("tokenizer.model", "special_tokens_map.json", "generation_config.json"):
        (model / name).unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/someone/secret-project"}))
    (model / "README.md").write_text(
        "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    )
    observer = Quiet()
    result = upload(run_stage, model, stage="upload-finetuned", observer=observer)
    folder = folder_of(result)
    assert {path.name for path in folder.iterdir()} == COMPLETE - {"tokenizer.model"}
    assert result.metrics["parity_texts"] is None
    assert metadata(folder)["license"] == "mit"
    assert "secret-project" not in (folder / "config.json").read_text()
    assert any("no unigram tokenizer.model" in note for note in observer.notes)
    assert any("no chat template" in note for note in observer.notes)


def test_paths_are_reduced_to_names() -> None:
    value = {"a": ["/home/me/My Data/x.jsonl", "~/y"], "b": "see ../z/w.txt and and/or https://h/i", "c": 3}
    assert without_paths(value) == {"a": ["x.jsonl", "y"], "b": "see w.txt and and/or https://h/i", "c": 3}


def test_planning_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "huggingface_hub", "sentencepiece", "safetensors"}
    code = "import sys, pipeline.upload, pipeline.convert; print([m for m in sys.argv[1:] if m in sys.modules])"
    argv = [sys.executable, "-c", code, *sorted(heavy)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "[]"
