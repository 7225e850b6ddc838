"""Engine ``llm-jp-sft`` with the real script: its pinned commit on Python 3.9, torch 2.2.0, transformers 4.37.

``UCLLM_TEST_SOURCES`` names a folder with a bare repository of each source, ``UCLLM_TEST_MEGATRON_CPU`` a workspace
that `ucllm setup --profile megatron-cpu` made. Nothing is written into either.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bootstrap import profiles
from tests.conftest import REPOSITORY
from tests.pipeline import tiny_chat, tiny_model
from tests.pipeline.conftest import Killer, Steps
from tests.pipeline.test_finetune import STRANGER, pairs, write
from tests.pipeline.test_llm_jp_sft import history_of, planned, refused, run, saved

pytestmark = pytest.mark.slow

#: A stranger of any age: transformers 4.37 gives a template's tokens in another form.
ANY_STRANGER = STRANGER.replace(
    'tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
    "tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False), "
    'add_special_tokens=False, return_tensors="pt")',
)


@pytest.fixture(scope="module")
def guide() -> Path:
    """The Python of the guide's environment."""
    made = os.environ.get("UCLLM_TEST_MEGATRON_CPU", "")
    if not (os.environ.get("UCLLM_TEST_SOURCES") and made):
        pytest.skip("needs UCLLM_TEST_SOURCES and UCLLM_TEST_MEGATRON_CPU")
    return Path(made).absolute() / ".venv" / "bin" / "python"


@pytest.fixture(scope="module")
def base(guide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of one layer, with a SentencePiece tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([str(guide), str(tiny_model.__file__), str(folder)], check=True, capture_output=True, env=env)
    argv = [str(guide), str(tiny_chat.__file__), str(folder), str(folder / "tokenizer.model")]
    made = subprocess.run(argv, check=False, capture_output=True, text=True, env=env)
    assert (folder / "base" / "tokenizer.json").exists(), made.stderr
    return folder / "base"


@pytest.fixture
def workspace(guide: Path, tmp_path: Path) -> Path:
    """A workspace with a checkout of its own, and a link to the environment."""
    source = profiles.load("megatron-cpu").sources["llm-jp-sft"]
    folder = tmp_path / "ws"
    folder.mkdir()
    repository = Path(os.environ["UCLLM_TEST_SOURCES"]) / "llm-jp-sft"
    git = ["git", "-c", "advice.detachedHead=false"]
    subprocess.run([*git, "clone", "-q", str(repository), str(folder / "llm-jp-sft")], check=True)
    subprocess.run([*git, "-C", str(folder / "llm-jp-sft"), "checkout", "-q", source.commit], check=True)
    (folder / ".ucllm").mkdir()
    (folder / ".venv").symlink_to(guide.parents[1])
    return folder


def test_it_learns_what_a_stranger_can_measure(workspace: Path, base: Path, env_python: Path, tmp_path: Path) -> None:
    result = run(workspace, planned(workspace, base, write(tmp_path / "data.jsonl", pairs())))
    assert result.metrics["answer_loss"] < result.metrics["answer_loss_base"] - 1
    assert result.metrics["steps"] == 32
    for python in (workspace / ".venv" / "bin" / "python", env_python):  # that of the guide's time, and a current one
        argv = [str(python), "-c", ANY_STRANGER, str(workspace / "tuned"), json.dumps(pairs()[16:])]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["loss"] == pytest.approx(result.metrics["answer_loss"], abs=1e-4)
        assert seen["ids"] == [[1, 6, 3]] * 2, "the tokenizer's"


def test_lora_is_merged(workspace: Path, base: Path, tmp_path: Path) -> None:
    made = planned(workspace, base, write(tmp_path / "data.jsonl", pairs()), "finetune.lora_rank=8")
    result = run(workspace, made)
    assert result.metrics["answer_loss"] < result.metrics["answer_loss_base"]
    assert not (workspace / "tuned" / "adapter_config.json").exists()


def test_killed_in_the_middle_it_continues_to_the_same_end(workspace: Path, base: Path, tmp_path: Path) -> None:
    made = planned(workspace, base, write(tmp_path / "data.jsonl", pairs()))
    killer = Killer(lambda home: len(saved(home)) >= 2)
    assert refused(workspace, made, killer).code == "stage.died"
    start = saved(made.home)[-1]
    steps = Steps()
    history = history_of(run(workspace, made, steps))
    assert f"Continuing from step {start}." in steps.notes
    model = (workspace / "tuned" / "model.safetensors").read_bytes()
    (workspace / "tuned").rename(workspace / "continued")
    made.home.rename(workspace / "continued.home")
    assert history_of(run(workspace, made)) == history
    assert (workspace / "tuned" / "model.safetensors").read_bytes() == model


def test_a_published_launch_reads_the_data_as_it_is(workspace: Path, base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    texts = [f"### Human: {question}\n### Assistant: {answer}<EOD>" for question, answer in pairs()]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    made = planned(workspace, base, data, "finetune.max_seq_length=64", compat="v0.71")
    steps = Steps()
    result = run(workspace, made, steps)
    assert made.launch is not None
    assert str(data) in made.launch.argv
    assert result.metrics["rows"] == 20
    assert result.metrics["answer_loss"] is None
    assert any("as it is" in note for note in steps.notes)
