"""A stage that does as its configuration says, to test the orchestration without any training."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UcllmError
from pipeline.runs import StagePlan

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.stages import Sources


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:  # noqa: ARG001  the contract's signature
    """Copy ``in.txt`` to ``out.txt`` and into the folder ``folder``; or to an ``--output``."""
    home = sources.home(stage)
    target = sources.output or home / "out.txt"
    outputs = {"text": target, "folder": target.with_name("folder")}
    return StagePlan(stage, home, {"how": ""}, {"text": sources.root / "in.txt"}, outputs)


def doing(made: StagePlan, how: str, **settings: Any) -> StagePlan:
    """The same plan, to be carried out as ``how`` says."""
    return dataclasses.replace(made, config={"how": how, **settings})


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Do it, or what ``how`` says instead."""
    print("a line of the log")
    how = job.config["how"]
    report.note(how)
    report.progress(1, 2, "steps")
    (job.home / "started").touch()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed with a worker":
        if os.fork() == 0:  # holds the events and the lock, as a data loader's worker does
            time.sleep(64)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wait":
        time.sleep(65)
    if how == "raise":
        raise RuntimeError("a bug")
    if how == "explain":
        raise UcllmError("stage.bad-input", "What is wrong.", "Why.", "What helps.")
    if how == "exit":
        sys.exit(7)
    if how == "nonsense":
        os.write(int(os.environ["UCLLM_EVENTS_FD"]), b'not json\n5\n{"no": "event"}\n')
    if how == "full":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        (job.work / "large").write_bytes(b"x" * 2000)
    if how != "nothing":
        text = job.inputs["text"].read_text(encoding="utf-8")
        job.outputs["text"].write_text(text, encoding="utf-8")
        job.outputs["folder"].mkdir()
        (job.outputs["folder"] / "copy.txt").write_text(text, encoding="utf-8")
    return {"length": 3, "versions": {"stand-in": "1"}}


def verify(job: Job) -> list[str]:
    """Complain if told to."""
    assert Path(job.work).is_dir()
    return ["The text is wrong.", "The folder is wrong."] if job.config["how"] == "wrong" else []
