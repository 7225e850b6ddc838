"""The process of one stage: ``python -m pipeline.child JOB.json``, started by :mod:`pipeline.train`."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UcllmError
from pipeline.events import EVENTS_FD, Reporter
from pipeline.i18n import _
from pipeline.runs import remove
from pipeline.stages import module_of

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """One execution of a stage: the resolved configuration and where things are.

    ``outputs`` lie in ``work``; they are published, by rename, after ``verify``. ``checkpoints`` is kept between
    executions with the same fingerprint and never mixed with others.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    home: Path
    work: Path
    checkpoints: Path

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read the job file that the tool wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            stage=data["stage"],
            config=data["config"],
            inputs={name: Path(value) for name, value in data["inputs"].items()},
            outputs={name: Path(value) for name, value in data["outputs"].items()},
            home=Path(data["home"]),
            work=Path(data["work"]),
            checkpoints=Path(data["checkpoints"]),
        )


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when the tool dies, however it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Had the tool died before the call, nobody would read the events. Its number says nothing: in a container it is 1.
    events = select.poll()
    events.register(int(os.environ[EVENTS_FD]), 0)
    if any(happened & select.POLLERR for _descriptor, happened in events.poll(0)):
        os._exit(1)


def main() -> int:
    """Run the stage of the job file named on the command line; 0 done, 1 failed."""
    if sys.platform == "linux" and EVENTS_FD in os.environ:
        _die_with_parent()
    report = Reporter()
    job = Job.load(Path(sys.argv[1]))
    stage = module_of(job.stage)
    try:
        remove(job.work)
        job.work.mkdir(parents=True)
        metrics = stage.run(job, report)
        problems = stage.verify(job)
        if problems:
            raise UcllmError.of([Problem("verify.failed", text) for text in problems])
    except UcllmError as error:
        report.error(error)
        return 1
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
        if not full:
            raise
        what = _("{stage} could not write {path}.").format(stage=job.stage, path=error.filename or job.work)
        hint = _("Make room or choose another workspace, then run the same command again.")
        report.error(UcllmError("output.not-writable", what, str(error.strerror), hint))
        return 1
    report.done(metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
