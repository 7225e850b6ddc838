"""``ucllm train … --submit``: the job script, which runs the same command without ``--submit`` on the job's nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bootstrap import activation
from bootstrap.cli.base import Report
from bootstrap.cli.work import Work
from pipeline.launch import Machines, batch, nodes
from pipeline.runs import StagePlan, write_text_atomically

JOB = "job.sh"


def files(work: Work, where: Machines, plans: Sequence[StagePlan]) -> dict[str, str]:
    """``job.sh`` by its name, where the cluster has a scheduler and this is not a job of it already."""
    if where.cluster.scheduler == "none" or nodes.inside(os.environ):
        return {}
    return {JOB: _script(work, where, plans)}


def submit(work: Work, where: Machines, plans: Sequence[StagePlan]) -> Report:
    """Write the script into the run directory and hand it to the scheduler. Raises :class:`UcllmError`."""
    script = plans[0].home / JOB
    text = _script(work, where, plans)
    script.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(script, text)
    job = batch.submit(script, where.cluster)
    return Report(work.command, "submitted", 0, {"stages": [], "job": job, "script": str(script)})


def _script(work: Work, where: Machines, plans: Sequence[StagePlan]) -> str:
    words = [word for word in sys.argv[1:] if word not in ("--submit", "--dry-run")]
    if not any(word.split("=")[0] == "--workspace" for word in words):
        words += ["--workspace", str(work.workspace.root)]
    name = "-".join(("ucllm", *work.command.split()[1:]))
    return batch.job_script(where.cluster, where, [*activation.tool(), *words], plans[0].home, name)
