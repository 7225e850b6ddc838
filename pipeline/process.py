"""The one door to child processes that do long work: they are heard, logged, stopped politely, and die with us."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    goes on. A child that said how long it takes to stop (``stopping``) is asked alone, and given that time; a second
    interrupt ends it at once. What the child started and left behind ends with it.
    """
    reader, writer = os.pipe()
    grace: float | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        try:
            output = stack.enter_context(log.open("ab"))
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
            for line in _lines(reader, child):
                try:
                    event = json.loads(line)
                except ValueError:  # cut short by the child's death
                    continue
                if isinstance(event, dict) and event.get("event") == "stopping":
                    grace = float(event["seconds"])
                elif isinstance(event, dict) and "event" in event:
                    on_event(event)
            _wait(child, None)
            return _sweep(child)
        except BaseException:
            if grace is not None and child.returncode is None:
                child.terminate()
                _hear_out(reader, child, grace, on_event)
            stop(child)
            raise


def _lines(reader: int, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """The lines in the pipe, until every writer has closed it, or the child has ended and nothing is left to read.

    The second matters: a worker that the child forked holds the pipe too, and may live on when the child is killed.
    """
    rest = b""
    ended = False
    while True:
        if select.select([reader], [], [], 0 if ended else 0.2)[0]:
            block = os.read(reader, 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        elif ended:
            return
        else:
            ended = _wait(child, 0)


def _hear_out(
    reader: int, child: subprocess.Popen[bytes], grace: float, on_event: Callable[[dict[str, Any]], None]
) -> None:
    """Let a child that was asked to stop end its work, and hear what it tells, for ``grace`` seconds at most."""
    deadline = time.monotonic() + grace
    for line in _lines(reader, child):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "note":
                on_event(event)
        if time.monotonic() >= deadline:
            return
    _wait(child, max(0.0, deadline - time.monotonic()))


def _wait(child: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Whether the child ends within ``seconds`` (``None``: ever). It is not reaped, so its number stays its own."""
    if child.returncode is not None:
        return True
    if seconds is None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        return True
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _sweep(child: subprocess.Popen[bytes]) -> int:
    """Kill what is left of an ended child's process group, and reap the child; its exit code."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the child's process group to stop, wait :data:`STOP_GRACE_S`, then kill it."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, request)
        if _wait(child, STOP_GRACE_S):
            _sweep(child)
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
