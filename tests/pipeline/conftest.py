"""Run a stage as ``ucllm train`` does: planned here, run in a real child of the environment's Python."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import runs
from pipeline.config import Config
from pipeline.recipe import resolve
from pipeline.stages import Sources, module_of
from pipeline.train import Environment, StageResult, train
from tests.conftest import REPOSITORY
from tests.pipeline import tiny_chat, tiny_model

TEXT = "The cat sat on the mat. The dog ran after the cat, and the cat ran up a tree.\nWho let the dog out?\n"


class Quiet:
    """An observer that only keeps the notes, for tests that read them."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def started(self, plan: runs.StagePlan, reason: str) -> None:
        """Nothing to show."""

    def event(self, plan: runs.StagePlan, event: Mapping[str, Any]) -> None:  # noqa: ARG002  the Observer's signature
        """Keep notes."""
        if event["event"] == "note":
            self.notes.append(str(event["text"]))

    def finished(self, result: StageResult) -> None:
        """Nothing to show."""


class Steps(Quiet):
    """Keeps the notes, and the steps that were reported."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def event(self, plan: runs.StagePlan, event: Mapping[str, Any]) -> None:
        super().event(plan, event)
        if event["event"] == "progress":
            self.steps.append(event["done"])


class Killer(Quiet):
    """Kills the stage's process, with SIGKILL, when ``when`` says so."""

    def __init__(self, when: Callable[[Path], bool]) -> None:
        super().__init__()
        self._when = when
        self.killed = False

    def event(self, plan: runs.StagePlan, event: Mapping[str, Any]) -> None:
        super().event(plan, event)
        if event["event"] == "progress" and not self.killed and self._when(plan.home):
            self.killed = True
            os.kill(_child(plan.home), signal.SIGKILL)


def _child(home: Path) -> int:
    job = str(home / "job.json").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if job in words and b"pipeline.child" in words:
            return int(path.parent.name)
    raise AssertionError("the stage's process is not there")


@pytest.fixture
def environment(env_python: Path, tmp_path: Path) -> Environment:
    """The environment of profile ``cpu`` with its state in the test's own folder."""
    return Environment(env_python, tmp_path / ".ucllm", "test")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus of small size: its prefix, and the tokenizer it was made with."""
    spm_trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    indexed_dataset = pytest.importorskip("pipeline.indexed_dataset")
    from pipeline import spm

    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")
    spm_trainer.train(
        input=str(text), model_prefix=str(folder / "t"), vocab_size=330, byte_fallback=True, num_threads=1,
        user_defined_symbols=list(spm.SPECIAL_TOKENS), minloglevel=2, hard_vocab_limit=False, bos_id=-1, eos_id=-1,
    )  # fmt: skip
    processor = spm.load(folder / "t.model")
    prefix = folder / "own.text_document"
    writer = indexed_dataset.Writer(prefix, "<u2")
    for number in range(40):
        writer.add_document([*processor.encode(TEXT[number % 7 :]), spm.eod_id(processor)])
    writer.finish()
    return prefix, folder / "t.model"


@pytest.fixture(scope="session")
def chat(env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models and the tokens of some chats: see tiny_chat.py."""
    folder = tmp_path_factory.getbasetemp() / "tiny-chat"
    if not folder.exists():
        tokenizer = tiny_model.shared_folder(env_python, tmp_path_factory) / "tokenizer.model"
        argv = [str(env_python), "-P", str(tiny_chat.__file__), str(folder), str(tokenizer)]
        subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread, and the more so the busier the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


RunStage = Callable[..., StageResult]


@pytest.fixture
def run_stage(environment: Environment, tmp_path: Path) -> RunStage:
    """``run_stage("corpus", settings=[...], inputs=(...), ...)``: the keywords of :class:`Sources`, and ``recipe``.

    Raises ``pipeline.train.StageFailed`` as training does.
    """

    def run(
        stage: str,
        settings: list[str] | None = None,
        *,
        recipe: str = "",
        config: Config | None = None,
        observer: Quiet | None = None,
        force: bool = False,
        **sources: Any,
    ) -> StageResult:
        chosen = config or resolve(recipe, settings or [])
        plan = module_of(stage).plan(stage, chosen, Sources(root=tmp_path / "output" / chosen.name, **sources))
        return train([plan], environment, observer or Quiet(), force=force)[0]

    return run
