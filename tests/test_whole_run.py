"""All seven stages on a small text of the test's own: killed in each stage, they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import STAGES
from tests.conftest import UCLLM, cli_environment

RECIPE = """
name = "small"
[data]
input = ["{text}"]
[tokenizer]
vocab_size = 310
num_threads = 2
[corpus]
lines_per_document = 4
[model]
layers = 2
hidden_size = 32
heads = 2
dropout = 0.1
[pretrain]
steps = 40
seq_length = 128
micro_batch_size = 4
global_batch_size = 4
learning_rate = 3.0e-3
eval_interval = 20
save_interval = 5
[finetune]
epochs = 2.0
micro_batch_size = 4
learning_rate = 1.0e-3
"""


def story() -> str:
    """A text with dialogue, so that instructions can be made from it; the same every time."""
    choose = random.Random(7).choice
    who, did, what = (
        ("Kiyo", "Red Shirt", "the Clown", "Porcupine"),
        ("saw", "took", "sold", "found"),
        ("dumplings", "a boat"),
    )
    lines = []
    for number in range(400):
        lines.append(f"{choose(who)} {choose(did)} {choose(what)} on day {number % 30}.")
        if number % 3 == 0:
            lines += [f'"Where did {choose(who)} go?"', f'"{choose(who)} {choose(did)} {choose(what)}."']
    return "\n".join(lines) + "\n"


class Run:
    """``ucllm train all`` in a workspace whose environment is the shared one, by a link."""

    def __init__(self, folder: Path, env_python: Path) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.workspace.mkdir(parents=True)
        (self.workspace / ".venv").symlink_to(env_python.parents[1])
        text = folder / "story.txt"
        text.write_text(story(), encoding="utf-8")
        self.recipe = folder / "small.toml"
        self.recipe.write_text(RECIPE.format(text=text), encoding="utf-8")
        self.argv = [*UCLLM, "train", "all", "--json", "--profile", "cpu"]
        self.argv += ["--workspace", str(self.workspace), "--recipe", str(self.recipe)]
        self.env = cli_environment(folder)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def finish(self) -> dict[str, Any]:
        output, _nothing = self.start().communicate(timeout=600)
        result: dict[str, Any] = json.loads(output)
        assert result["exit_code"] == 0, result["errors"]
        return {stage["stage"]: stage for stage in result["data"]["stages"]}

    def home(self, stage: str) -> Path:
        return self.workspace / "output" / "small" / stage

    def files(self) -> dict[str, tuple[int, bytes]]:
        root = self.workspace / "output"
        return {
            str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()
        }


@pytest.mark.slow
def test_killed_in_each_stage_it_ends_as_if_undisturbed(env_python: Path, tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "undisturbed", env_python)
    wanted = undisturbed.finish()
    assert [stage["state"] for stage in wanted.values()] == ["ran"] * 7

    before = undisturbed.files()
    again = undisturbed.finish()
    assert [stage["state"] for stage in again.values()] == ["up-to-date"] * 7
    assert undisturbed.files() == before

    disturbed = Run(tmp_path / "disturbed", env_python)
    for number, info in enumerate(STAGES):
        child = disturbed.start()
        home = disturbed.home(info.name)
        deadline = time.monotonic() + 120
        # Pretraining is killed once there is a checkpoint to continue from, the others soon after their start.
        waited_for = home / "checkpoints" if info.name == "pretrain" else home / "work"
        while not (waited_for.exists() and any(waited_for.parent.iterdir())):
            assert child.poll() is None, f"it ended before {info.name} could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if info.name == "pretrain":
            while not list(waited_for.glob("*/checkpoint-*")):
                assert child.poll() is None
                time.sleep(0.02)
        if number % 2:  # the tool alone: its stage must die with it
            os.kill(child.pid, signal.SIGKILL)
        else:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        assert not (home / "manifest.json").exists()
    ended = disturbed.finish()

    for stage in ("tokenizer", "corpus"):
        names = [
            path.name
            for path in undisturbed.home(stage).iterdir()
            if path.suffix in (".model", ".vocab", ".bin", ".idx")
        ]
        assert len(names) == 2
        for name in names:
            assert (disturbed.home(stage) / name).read_bytes() == (undisturbed.home(stage) / name).read_bytes()
    one, other = wanted["pretrain"]["metrics"], ended["pretrain"]["metrics"]
    assert one["steps"] == other["steps"] == 40
    for metric in ("loss_last", "val_loss"):
        assert other[metric] == pytest.approx(one[metric], abs=1e-4)
    assert ended["finetune"]["metrics"]["answer_loss"] == pytest.approx(
        wanted["finetune"]["metrics"]["answer_loss"], abs=1e-3
    )
