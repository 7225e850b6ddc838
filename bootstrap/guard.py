"""Runs one command so that it never outlives the tool: started as a script by :func:`bootstrap.host.run_logged`.

pip and venv start processes of their own, which nobody stops when ``ucllm`` is killed. This process outlives the tool
by just as long as it takes to end them all, and holds what it inherited (the workspace's lock) until then: the next
``ucllm setup`` waits, and never meets a pip that still writes.

    python guard.py PID_OF_THE_TOOL COMMAND...
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
#: Seconds between the request to stop and the end of patience; less than the tool waits for this process.
GRACE_S = 5


def main() -> int:
    """Run the command; its exit code, or 128 + the signal that ended it."""
    tool, argv = int(sys.argv[1]), sys.argv[2:]
    group = 0

    def end(number: int, _frame: object) -> None:
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM if number == signal.SIGTERM else signal.SIGKILL)
        if number == signal.SIGTERM:
            signal.alarm(GRACE_S)

    caught = {signal.SIGTERM, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for number in caught:
        signal.signal(number, end)
    # What the command started and left behind becomes our child, so that its end can be waited for.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != tool:  # it died before the call
        return 128 + signal.SIGTERM
    group = os.fork()
    if group == 0:
        _become(argv, caught)
    with contextlib.suppress(OSError):  # it did so itself already
        os.setpgid(group, group)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    # Not reaped yet, so that its number cannot become another group's.
    os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(group, 0)[1])
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
    return code if code >= 0 else 128 - code


def _become(argv: list[str], blocked: set[signal.Signals]) -> NoReturn:
    """Turn the new process into the command, in a group of its own."""
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in blocked:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        os.execvp(argv[0], argv)  # noqa: S606  the argv of the plan that was shown
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(127)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


if __name__ == "__main__":
    sys.exit(main())
