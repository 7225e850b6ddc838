"""An engine that is another program: its files, its start, its output, its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.engines.megatron_start import RANKS, STAGE
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.launch.styles import ENVIRONMENT

if TYPE_CHECKING:
    from pipeline.events import Reporter

#: Seconds that a request to stop may take: the step at hand and a checkpoint.
STOP_SECONDS = 600.0
#: Seconds between the attempts to reach processes that have not left their numbers yet.
ASK_AGAIN_S = 0.5
#: Variables of the activated environment that the processes of other nodes need too.
CARRIED = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", RANKS)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
#: Loaded here: between fork and exec nothing may be, where other threads live.
_LIBC = ctypes.CDLL(None)


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the launch's files, and nothing of an earlier launch beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "ranks").mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        if path.parent.name == "bin":
            path.chmod(0o755)
    return folder


def point_to_checkpoints(link: Path, folder: Path) -> None:
    """Let ``link``, which the launch names, lead to the checkpoints of this configuration and these inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(folder, link.parent))


@dataclass
class Heard:
    """What the log said of how it went: why the training stopped early, its seconds, its end, its errors."""

    stopped_by: str = ""
    seconds: float = 0.0
    #: What Python tracebacks ended with, the first one first: later ones are of launchers and of other processes.
    errors: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    inside_traceback: bool = False

    def take(self, line: str) -> bool:
        """Keep the end, and follow tracebacks: their last line is the first that is not indented. Always false."""
        self.tail = [*self.tail[-14:], line]
        if line.startswith("Traceback (most recent call last)"):
            self.inside_traceback = True
        elif self.inside_traceback and line and not line[0].isspace():
            self.inside_traceback = False
            self.errors.append(line)
        return False

    @property
    def why(self) -> str:
        """The reason of a failure: what Python said first, else the end of the log."""
        return self.errors[0] if self.errors else _("The end of its log:") + "\n" + "\n".join(self.tail)


def stopped(stage: str, checkpoint: Path | None) -> UcllmError:
    """What to say of a training that ended because it was asked to; ``checkpoint`` is where it can continue."""
    if checkpoint is None:
        why, hint = _("No checkpoint was saved."), _("Run the same command again; it begins anew.")
    else:
        why = _("Its checkpoint is {path}.").format(path=checkpoint)
        hint = _("Run the same command again; it continues from there.")
    return UcllmError(f"{stage}.stopped", _("The training was stopped."), why, hint)


class Stopper:
    """Takes requests to stop: the first becomes one to every process that trains, the second ends them all.

    ``asked`` says that there was one. A launch without our start module cannot be asked: it is ended at once.
    """

    def __init__(self, child: subprocess.Popen[bytes], ranks: Path, report: Reporter, *, can_be_asked: bool) -> None:
        self.child, self.ranks, self.report, self.can_be_asked = child, ranks, report, can_be_asked
        self.asked = False

    def __call__(self, _number: int, _frame: Any) -> None:
        """The signal handler. What takes time, and what is told, is a thread's: a handler must not interrupt itself."""
        first, self.asked = not self.asked, True
        if first and self.can_be_asked:
            threading.Thread(target=self._ask, daemon=True).start()
        else:
            self.end()

    def _ask(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while self.child.poll() is None and time.monotonic() < deadline:
            if self._reached():
                self.report.note(_("Asked to stop: the step ends and a checkpoint is saved."))
                break
            time.sleep(ASK_AGAIN_S)
        while self.child.poll() is None and time.monotonic() < deadline:
            time.sleep(ASK_AGAIN_S)
        if self.child.poll() is None:
            self.end()

    def _reached(self) -> bool:
        """Ask every training process of this machine; whether there was one. They tell those of other machines."""
        found = False
        for path in self.ranks.glob(f"{os.uname().nodename}-*"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text(encoding="ascii")), signal.SIGTERM)
                found = True
        return found

    def end(self) -> None:
        """End the launcher and what it started here; one that has nodes behind it gets time to end those."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGTERM)
            threading.Timer(10.0, self._kill).start()

    def _kill(self) -> None:
        if self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)


def run(launch: Mapping[str, Any], folder: Path, hear: Callable[[str], bool], report: Reporter) -> tuple[int, bool]:
    """Start ``launch`` in ``folder``; its exit code, and whether it was asked to stop.

    Each line it prints goes to our own output and to ``hear``, which says whether the rest must end: a node that failed
    does not end the others by itself.
    """
    env = {**os.environ, **launch["env"], RANKS: str(folder / "ranks"), STAGE: f"{os.uname().nodename} {os.getpid()}"}
    if (folder / "bin").is_dir():
        env["PATH"] = os.pathsep.join((str(folder / "bin"), env.get("PATH", os.defpath)))
    if (folder / ENVIRONMENT).exists():
        with (folder / ENVIRONMENT).open("a", encoding="utf-8") as stream:
            stream.writelines(f"{name}={env[name]}\n" for name in CARRIED if name in env)
    child = subprocess.Popen(
        launch["argv"],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_in_a_group_that_dies_with_us,  # noqa: PLW1509  no thread runs yet
    )
    report.stopping(STOP_SECONDS)
    ours = any(word.endswith("_start.py") for word in launch["argv"])
    stop = Stopper(child, folder / "ranks", report, can_be_asked=ours)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with child.stdout as output:  # type: ignore[union-attr]  # it is a pipe
            for line in _lines(output):
                print(line, flush=True)
                if hear(line):
                    child.terminate()
        return child.wait(), stop.asked
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_a_group_that_dies_with_us() -> None:
    os.setpgid(0, 0)
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lines(output: IO[bytes]) -> Iterator[str]:
    for block in output:
        yield block.decode("utf-8", "replace").rstrip("\n")
