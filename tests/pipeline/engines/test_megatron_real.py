"""The real Megatron-DeepSpeed and llm-jp-sft on a CPU: the whole of `ucllm train all`, and what must survive in it.

``UCLLM_TEST_MEGATRON_CPU`` names a workspace that ``ucllm setup --profile megatron-cpu`` made: the real checkouts,
Python 3.9, torch 2.2.0. Runs go to folders of their own in its ``output/``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import UCLLM, cli_environment

WORKSPACE = os.environ.get("UCLLM_TEST_MEGATRON_CPU", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WORKSPACE, reason="UCLLM_TEST_MEGATRON_CPU names no workspace of profile megatron-cpu"),
]
RECIPE = """
[data]
dataset = "botchan"
[corpus]
start_after = "*** START OF"
end_before = "End of Project Gutenberg's"
[model]
layers = 2
hidden_size = 64
heads = 4
dropout = 0.0
[pretrain]
engine = "megatron-deepspeed"
steps = 40
seq_length = 64
micro_batch_size = 4
global_batch_size = 8
learning_rate = 2.0e-3
min_learning_rate = 1.0e-4
warmup_steps = 5
log_interval = 5
eval_interval = 20
eval_iters = 2
save_interval = 10
[finetune]
engine = "llm-jp-sft"
data = "corpus"
epochs = 1.0
learning_rate = 5.0e-4
micro_batch_size = 8
"""


class Run:
    """A recipe of its own name in the real workspace, and the command line on it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.recipe = folder / f"{name}.toml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        self.output = Path(WORKSPACE, "output", name)
        shutil.rmtree(self.output, ignore_errors=True)

    def argv(self, *words: str) -> list[str]:
        return [*UCLLM, "train", *words, "--workspace", WORKSPACE, "--recipe", str(self.recipe), "--json"]

    def __call__(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(self.argv(*words), env=self.env(), capture_output=True, text=True, check=False)
        result: dict[str, Any] = json.loads(done.stdout)
        assert result["exit_code"] == 0, json.dumps(result, indent=1) + done.stderr
        return {stage["stage"]: stage for stage in result["data"]["stages"]}

    def env(self) -> dict[str, str]:
        return cli_environment(self.folder)

    def wait_for(self, step: int, child: subprocess.Popen[str]) -> None:
        log = self.output / "pretrain" / "log.txt"
        while child.poll() is None:
            if log.exists() and f"iteration {step:8d}/" in log.read_text(encoding="utf-8", errors="replace"):
                return
            time.sleep(0.2)
        raise AssertionError(child.communicate())

    def started(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), env=self.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    made = Run(tmp_path, f"real-{os.getpid()}-{abs(hash(request.node.name)) % 10_000}")
    yield made
    shutil.rmtree(made.output, ignore_errors=True)


@pytest.mark.parametrize("split", [(), ("parallel.tp=2",), ("parallel.pp=2",)], ids=["plain", "tp2", "pp2"])
def test_all_steps(run: Run, split: Sequence[str]) -> None:
    stages = run("all", *(word for item in split for word in ("--set", item)))
    assert [stage["state"] for stage in stages.values()] == ["ran"] * 7
    pretrain = stages["pretrain"]["metrics"]
    assert pretrain["steps"] == 40
    assert pretrain["loss_last"] < pretrain["loss_first"] - 0.5
    assert stages["upload-pretrained"]["metrics"]["sample"]
    assert stages["upload-finetuned"]["metrics"]["sample"]
    assert subprocess.run(
        ["git", "-C", f"{WORKSPACE}/Megatron-DeepSpeed", "status", "--porcelain", "--untracked-files=no"],
        capture_output=True, text=True, check=True,
    ).stdout == ""  # fmt: skip


def test_killed_stopped_and_continued_on_other_processes(run: Run) -> None:
    run("tokenizer")
    run("corpus")
    long = ("pretrain", "--set", "pretrain.steps=2000", "--set", "pretrain.save_interval=20")
    child = run.started(*long)
    run.wait_for(50, child)
    child.kill()
    child.communicate()
    child = run.started(*long)
    run.wait_for(100, child)
    log = (run.output / "pretrain" / "log.txt").read_text(encoding="utf-8")
    assert "iteration       45/" in log  # it went on from 40, not from nothing
    assert "iteration       40/" not in log
    child.send_signal(signal.SIGINT)
    _out, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "checkpoint" in said
    steps = sorted(int(path.name[11:]) for path in run.output.glob("pretrain/checkpoints/*/global_step*"))
    assert steps[-1] >= 100
    child = run.started(*long, "--gpus-per-node", "2")
    run.wait_for(steps[-1] + 5 - steps[-1] % 5 + 20, child)
    assert f"iteration {100:8d}/" not in (run.output / "pretrain" / "log.txt").read_text(encoding="utf-8")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=120)
    (heard,) = run.output.glob("pretrain/checkpoints/*/heard.jsonl")
    history = [json.loads(line) for line in heard.read_text(encoding="utf-8").splitlines()]
    told = [entry["step"] for entry in history if entry["kind"] == "step"]
    assert told == sorted(set(told))


def test_zero_1_continues_on_another_number_of_processes(run: Run) -> None:
    """ZeRO cuts the optimizer by the number of processes; DeepSpeed's universal checkpoint puts it together again."""
    run("tokenizer")
    run("corpus")
    long = ("pretrain", "--set", "pretrain.steps=120", "--set", "parallel.zero=1")
    child = run.started(*long, "--gpus-per-node", "2")
    run.wait_for(50, child)
    child.send_signal(signal.SIGINT)
    _out, said = child.communicate(timeout=300)
    assert child.returncode == 130, said
    metrics = run(*long, "--gpus-per-node", "1")["pretrain"]["metrics"]
    assert metrics["steps"] == 120
    log = (run.output / "pretrain" / "log.txt").read_text(encoding="utf-8")
    assert f"iteration {50:8d}/" not in log
    losses = [entry["loss"] for entry in json.loads((run.output / "pretrain" / "history.json").read_text())["train"]]
    assert losses[-1] < losses[9]


#: Like srun, one task a node, where a node is a network namespace of this machine.
SRUN = """#!/bin/sh
while :; do
    case "$1" in
        --nodelist=*) hosts=$(echo "${1#*=}" | tr , ' '); shift;;
        --*) shift;;
        *) break;;
    esac
done
number=0; children=""
for host in $hosts; do
    SLURM_NODEID=$number SLURM_PROCID=$number ip netns exec "$(cat "$NODES/$host")" "$@" &
    children="$children $!"; number=$((number + 1))
done
code=0
for child in $children; do wait "$child" || code=$?; done
exit $code
"""
CLUSTER = """
description = "two network namespaces"
scheduler = "slurm"
launcher = "torchrun"
partition = "none"
nodes = 2
[environment]
GLOO_SOCKET_IFNAME = "ucllm0"
"""


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Two namespaces with an interface ``ucllm0`` each, wired to the other; yields their addresses."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names, addresses = [f"ucllm-{os.getpid()}-{i}" for i in (0, 1)], ("10.77.0.1", "10.77.0.2")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "ucllm0", "netns", names[0], "type", "veth", "peer", "name", "ucllm0", "netns", names[1])
        for name, address in zip(names, addresses):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "ucllm0")
            ip("-n", name, "link", "set", "ucllm0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            (tmp_path / address).write_text(name, encoding="ascii")
        yield addresses
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def test_two_nodes_train_over_the_network(
    run: Run, two_nodes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = run.folder / "bin"
    stub.mkdir()
    (stub / "srun").write_text(SRUN, encoding="utf-8")
    (stub / "srun").chmod(0o755)
    (run.folder / "own.toml").write_text(CLUSTER, encoding="utf-8")
    monkeypatch.setenv("PATH", f"{stub}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NODES", str(run.folder))
    run("tokenizer")
    run("corpus")
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    monkeypatch.setenv("SLURM_JOB_NODELIST", ",".join(two_nodes))
    where = ("--cluster", str(run.folder / "own.toml"), "--nodes", "2", "--gpus-per-node", "1")
    metrics = run("pretrain", *where)["pretrain"]["metrics"]
    assert metrics["steps"] == 40
    log = (run.output / "pretrain" / "log.txt").read_text(encoding="utf-8")
    assert "using world size: 2, data-parallel-size: 2" in log
    assert metrics["loss_last"] < metrics["loss_first"] - 0.5
