"""`ucllm train --nodes 2` in a job of a stand-in scheduler: the nodes are asked before anything starts on them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.launch.nodes import master_port
from tests.bootstrap.conftest import Outcome
from tests.bootstrap.nodes.conftest import FIRST, Nodes, free_port

#: Like sbatch: runs the script at once, as a job of two nodes, keeps what it printed, and tells the job's number.
SBATCH = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
cp "$1" "$STUB/job.sh"
(export SLURM_JOB_ID=$JOB SLURM_JOB_NODELIST=$NODELIST; bash "$1" > "$STUB/job.out" 2>&1; echo $? > "$STUB/job.code")
echo "$JOB"
"""


def _job() -> int:
    """A job's number whose port is free."""
    while True:
        job = free_port()
        if master_port(str(job)) == 10000 + job % 50000 and _is_free(master_port(str(job))):
            return job


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


def _words(nodes: Nodes) -> list[str]:
    own = nodes.tiny.root / "own"
    for kind in ("bin", "idx"):
        Path(f"{own}_text_document.{kind}").write_bytes(b"")
    own.with_suffix(".model").write_bytes(b"")
    files = ["--input", str(own), "--tokenizer", f"{own}.model", "--output", str(nodes.tiny.root / "out")]
    # The job would ask for eight GPUs a node; this machine stands for both nodes and has none.
    where = ["--cluster", "gcp-play", "--nodes", "2", "--gpus-per-node", "1"]
    return ["train", "pretrain", "--engine", "megatron-deepspeed", *files, *where, "--json"]


@pytest.fixture
def job(hurried: Nodes) -> Nodes:
    number = str(_job())
    hurried.tiny.variables |= {"SLURM_JOB_ID": number, "JOB": number}
    return hurried


def _train(nodes: Nodes, other: str, *options: str) -> Outcome:
    nodes.tiny.variables |= {"SLURM_JOB_NODELIST": f"{FIRST},{other}", "NODELIST": f"{FIRST},{other}"}
    return nodes.tiny(*_words(nodes), *options)


@pytest.mark.parametrize(("other", "check"), [("gone-1", "nodes.reachable"), ("torch-1", "nodes.versions")])
def test_a_node_that_is_not_fit_is_named_before_anything_starts(job: Nodes, other: str, check: str) -> None:
    refused = _train(job, other)
    assert refused.json["status"] == "refused", refused.err
    assert refused.code == 1
    (problem,) = [item for item in refused.json["errors"] if item["code"] == f"check.{check}"]
    assert other in problem["message"]
    assert problem["hint"]
    assert not (job.tiny.root / "out.ucllm" / "pretrain" / "job.json").exists()


def test_a_port_that_is_taken(job: Nodes) -> None:
    with socket.create_server(("", master_port(job.tiny.variables["JOB"]))):
        refused = _train(job, "other-1")
    assert refused.code == 1
    assert "check.nodes.port" in [item["code"] for item in refused.json["errors"]]


def test_outside_a_job_there_are_no_nodes(hurried: Nodes) -> None:
    refused = hurried.tiny(*_words(hurried))
    assert (refused.code, refused.json["errors"][0]["code"]) == (2, "launch.no-job")
    assert "--submit" in refused.json["errors"][0]["hint"]
    planned = hurried.tiny(*_words(hurried), "--dry-run")
    assert planned.code == 0
    assert planned.json["data"]["launch"]["files"]["hostfile"] == "node-0 slots=1\nnode-1 slots=1\n"
    assert "#SBATCH --nodes=2" in planned.json["data"]["launch"]["files"]["job.sh"]


def test_a_job_that_is_submitted_asks_its_nodes_and_tells_its_failure(job: Nodes) -> None:
    sbatch = job.stub / "sbatch"
    sbatch.write_text(SBATCH, encoding="utf-8")
    sbatch.chmod(0o755)
    number = job.tiny.variables["JOB"]
    job.tiny.variables |= {"SLURM_JOB_ID": "", "NODELIST": f"{FIRST},torch-1"}
    # In the job runs the tool itself, not the test's: by its path it knows the profile too.
    profile = str(job.tiny.root / "locks" / "tiny")
    submitted = job.tiny(*_words(job), "--submit", "--profile", profile)
    assert submitted.code == 0, submitted.err
    assert submitted.json["data"]["job"] == number
    script = (job.stub / "job.sh").read_text(encoding="utf-8")
    assert "--submit" not in script
    assert f"--workspace {job.tiny.workspace}" in script
    assert (job.stub / "job.code").read_text(encoding="ascii").strip() == "1"
    assert "check.nodes.versions" in (job.stub / "job.out").read_text(encoding="utf-8")
