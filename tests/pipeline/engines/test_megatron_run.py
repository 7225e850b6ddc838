"""Engine ``megatron-deepspeed`` from start to end, with a stand-in for the script that trains: everything else is real.

The real script on a CPU is in ``test_megatron_real.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch import Machines
from pipeline.launch.cluster import load
from pipeline.pretrain import plan
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult, link_code, train
from tests.conftest import REPOSITORY
from tests.pipeline.conftest import Quiet, Steps

STANDIN = Path(__file__).parent / "standin_megatron"
SETTINGS = (
    "pretrain.engine=megatron-deepspeed", "model.layers=2", "model.hidden_size=32", "model.heads=2",
    "pretrain.seq_length=32", "pretrain.micro_batch_size=2", "pretrain.global_batch_size=8", "pretrain.steps=40",
    "pretrain.log_interval=5", "pretrain.eval_interval=20", "pretrain.save_interval=10", "pretrain.warmup_steps=2",
)  # fmt: skip


class Machine:
    """A workspace with a checkout of the stand-in, and what it takes to train in it."""

    def __init__(self, root: Path, corpus: tuple[Path, Path], python: Path) -> None:
        self.root, self.corpus, self.python = root, corpus, python
        (root / "Megatron-DeepSpeed").symlink_to(STANDIN)
        self.environment = Environment(python, root / ".ucllm", "test")
        link_code(self.environment)
        (root / "own.toml").write_text("", encoding="utf-8")

    @property
    def home(self) -> Path:
        return self.root / "run" / "pretrain"

    @property
    def checkpoints(self) -> Path:
        (folder,) = (self.home / "checkpoints").iterdir()
        return folder

    def train(self, *settings: str, slots: int = 1, observer: Quiet | None = None) -> StageResult:
        machines = Machines(
            load("local"), ("localhost",), slots, "cpu", _port(), self.root, self.python, ".so", memory=1 << 30
        )
        prefix, tokenizer = self.corpus
        code = self.environment.state / "code"
        sources = Sources(self.root / "run", inputs=(str(prefix),), tokenizer=tokenizer, machines=machines, code=code)
        planned = plan("pretrain", resolve(str(self.root / "own.toml"), [*SETTINGS, *settings]), sources)
        return train([planned], self.environment, observer or Quiet())[0]

    def kept(self) -> list[int]:
        """The steps whose checkpoints are whole."""
        found = self.checkpoints.glob("global_step*/complete.json")
        return sorted(int(path.parent.name.removeprefix("global_step")) for path in found)

    def history(self) -> list[int]:
        made = json.loads((self.home / "history.json").read_text(encoding="utf-8"))
        return [entry["step"] for entry in made["train"]]


def _port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def machine(tmp_path: Path, corpus: tuple[Path, Path], env_python: Path) -> Machine:
    return Machine(tmp_path, corpus, env_python)


def _training(root: Path) -> list[Any]:
    """Processes of the stand-in and its launcher that run in ``root``, as psutil has them."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        words: Sequence[str] = process.info["cmdline"] or ()
        if any("megatron_start.py" in word for word in words) and any(str(root) in word for word in words):
            found.append(process)
    return found


def test_trains_and_publishes_the_checkpoint(machine: Machine) -> None:
    steps = Steps()
    result = machine.train(observer=steps)
    metrics = result.metrics
    assert (metrics["steps"], metrics["stopped_by"]) == (40, "steps")
    assert (metrics["loss_first"], metrics["loss_last"], metrics["val_loss"]) == (7.75, 6.0, 6.0)
    assert metrics["tokens_per_second"] == 12800.0  # 8 samples of 32 tokens in 20 ms
    assert steps.steps[-1] == 40
    assert machine.history() == [5, 10, 15, 20, 25, 30, 35, 40]
    names = {path.name for path in (machine.home / "model").iterdir()}
    assert names == {"layer_01-model_00-model_states.pt", "mp_rank_00_model_states.pt"}
    assert machine.kept() == [30, 40]  # keep_checkpoints
    manifest = json.loads((machine.home / "manifest.json").read_text(encoding="utf-8"))
    assert "torch.distributed.run" in manifest["argv"]
    assert machine.train().state == "up-to-date"


def test_another_number_of_processes_goes_on_where_the_last_stopped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "raise:25")
    with pytest.raises(StageFailed):
        machine.train(slots=1)
    monkeypatch.delenv("STANDIN")
    quiet = Quiet()
    assert machine.train(slots=2, observer=quiet).metrics["steps"] == 40
    assert any("Continuing from step 20" in note for note in quiet.notes)
    assert machine.history() == [5, 10, 15, 20, 25, 30, 35, 40]


def test_a_failure_names_what_python_said_and_the_log(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "raise:12")
    with pytest.raises(StageFailed) as failed:
        machine.train()
    (problem,) = failed.value.error.problems
    assert problem.code == "pretrain.engine-failed"
    assert "ValueError: stand-in fault" in problem.why
    assert str(machine.home / "log.txt") in problem.hint
    assert not (machine.home / "manifest.json").exists()
    assert "ValueError: stand-in fault" in (machine.home / "log.txt").read_text(encoding="utf-8")


def test_a_loss_that_is_not_a_number(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "nan:30")
    with pytest.raises(StageFailed) as failed:
        machine.train()
    assert failed.value.error.problems[0].code == "pretrain.diverged"


def test_death_while_a_checkpoint_is_saved(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "half:30")
    with pytest.raises(StageFailed):
        machine.train()
    assert machine.kept() == [10, 20]
    monkeypatch.delenv("STANDIN")
    quiet = Quiet()
    assert machine.train(observer=quiet).metrics["steps"] == 40
    assert any("global_step30 was left unfinished" in note for note in quiet.notes)
    assert any("Continuing from step 20" in note for note in quiet.notes)


def test_a_checkpoint_that_was_cut_is_put_aside(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "raise:35")
    with pytest.raises(StageFailed):
        machine.train()
    cut = machine.checkpoints / "global_step30" / "mp_rank_00_model_states.pt"
    cut.write_bytes(cut.read_bytes()[:-10])
    monkeypatch.delenv("STANDIN")
    quiet = Quiet()
    machine.train(observer=quiet)
    assert any("Continuing from step 20" in note for note in quiet.notes)
    assert (machine.checkpoints / "damaged-global_step30").is_dir()


def test_one_that_megatron_finished_counts_though_nobody_marked_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "raise:35")
    with pytest.raises(StageFailed):
        machine.train()
    (machine.checkpoints / "global_step30" / "complete.json").unlink()
    monkeypatch.delenv("STANDIN")
    quiet = Quiet()
    machine.train(observer=quiet)
    assert any("Continuing from step 30" in note for note in quiet.notes)


_RUN = """
import sys
from pathlib import Path
from tests.pipeline.engines.test_megatron_run import Machine
machine = Machine.__new__(Machine)
machine.__dict__.update(root=Path(sys.argv[1]), corpus=(Path(sys.argv[2]), Path(sys.argv[3])), python=Path(sys.argv[4]))
from pipeline.train import Environment
machine.environment = Environment(machine.python, machine.root / ".ucllm", "test")
machine.train(slots=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_saves_and_a_kill_leaves_nobody_behind(machine: Machine, number: signal.Signals) -> None:
    prefix, tokenizer = machine.corpus
    argv = [sys.executable, "-c", _RUN, str(machine.root), str(prefix), str(tokenizer), str(machine.python)]
    tool = subprocess.Popen(
        argv, env={**os.environ, "STANDIN": "slow", "PYTHONPATH": str(REPOSITORY)}, cwd=machine.root,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = machine.home / "log.txt"
    deadline = time.monotonic() + 120
    while not (log.exists() and "iteration       15/" in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        assert tool.poll() is None
        time.sleep(0.1)
    mine = _training(machine.root)
    assert len(mine) == 3  # two that train and their launcher
    tool.send_signal(number)
    tool.wait(60)
    import psutil

    gone, alive = psutil.wait_procs(mine, timeout=30)
    assert (len(gone), alive) == (3, [])
    kept = machine.kept()
    if number == signal.SIGINT:
        assert kept[-1] > 10
        assert kept[-1] % 10  # the step at hand, not one of the interval's
    else:
        assert kept == [10]
