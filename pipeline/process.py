"""The one door to child processes that do long work: they are heard, logged, stopped politely, and die with us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.events import EVENTS_FD

#: Seconds a child gets between the request to stop and the end of patience.
STOP_GRACE_S = 10.0


def run_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    inherit: Sequence[int] = (),
) -> int:
    """Run ``argv``, its output to ``log``, its events (:mod:`pipeline.events`) to ``on_event``; returns its exit code.

    A negative code is the signal that ended it. ``inherit`` are descriptors the child keeps open (the run's lock).
    When this process is interrupted the child's whole process group is asked to stop, then made to, and the interrupt
    goes on.
    """
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(os.fdopen(reader, "r", encoding="utf-8"))
        output = stack.enter_context(log.open("ab"))
        try:
            child = subprocess.Popen(
                list(argv),
                env={**env, EVENTS_FD: str(writer)},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writer, *inherit),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            for line in events:
                with contextlib.suppress(ValueError):  # a line cut short by the child's death
                    on_event(json.loads(line))
            return child.wait()
        except BaseException:
            stop(child)
            raise


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the child's process group to stop, wait :data:`STOP_GRACE_S`, then kill it."""
    for request, patience in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, STOP_GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return


def tail(path: Path, lines: int = 15) -> str:
    """The last ``lines`` of a log, progress bars reduced to their last state."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 16_384))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line.rsplit("\r", 1)[-1] for line in text.splitlines()][-lines:])
