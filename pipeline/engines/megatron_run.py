"""Engine ``megatron-deepspeed`` at work: start the launch, hear its log, keep its checkpoints, stop it cleanly."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.checkpoints import MEGATRON
from pipeline.engines import megatron_log
from pipeline.engines.megatron_start import RANKS
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.launch.styles import ENVIRONMENT

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.events import Reporter

#: Seconds that a request to stop may take: the step at hand and a checkpoint.
STOP_SECONDS = 600.0
#: Megatron's pointer to the checkpoint that every process has finished, and DeepSpeed's.
TRACKER, LATEST = "latest_checkpointed_iteration.txt", "latest"
#: Variables of the activated environment that the processes of other nodes need too.
CARRIED = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", RANKS)
#: pdsh names the node before each line that it prints.
_PREFIX = re.compile(r"^[\w.-]+: ")
#: Beside the checkpoints: what was heard so far, a JSON object a line.
HEARD = "heard.jsonl"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Heard:
    """What the log said: entries of steps and validations, in order, and why the training stopped early."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
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


@dataclass(frozen=True)
class Trained:
    """The checkpoint that was reached, its step, and what was heard."""

    checkpoint: Path
    step: int
    heard: Heard


def train(job: Job, report: Reporter) -> Trained:
    """Start the job's launch, from its newest whole checkpoint, and wait for its end.

    Raises :class:`UcllmError` when it fails, when the loss is not a number, and when it was stopped.
    """
    launch = job.config["run"]["launch"]
    folder = write_files(job.home / "launch", launch["files"])
    point_to_checkpoints(job.home / "checkpoint", job.checkpoints)
    start = starting_point(job.checkpoints, report)
    heard = _remembered(job.checkpoints / HEARD, MEGATRON.step(start) if start else 0)
    if start is not None and _other_share(start, job):
        launch = _universal(start, launch, folder, report)
    if start is None or MEGATRON.step(start) < job.config["pretrain"]["steps"]:
        code = run(launch, folder, lambda line: _hear(line, job, report, heard), report)
        _judge(code, job, heard)
    found = checkpoints.newest_complete(job.checkpoints, MEGATRON)
    if found is None:
        raise _failed(job, 0, heard)
    return Trained(found, MEGATRON.step(found), heard)


def _remembered(path: Path, step: int) -> Heard:
    """What earlier starts of this training heard up to ``step``, where this one continues; the rest is forgotten."""
    heard, kept = Heard(), []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):  # cut short by a kill
                entry = json.loads(line)
                if entry["step"] <= step:
                    kept.append(line)
                    (heard.steps if entry["kind"] == "step" else heard.validations).append(entry)
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return heard


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


def starting_point(root: Path, report: Reporter) -> Path | None:
    """The newest whole checkpoint, and the pointers of Megatron and DeepSpeed set to it.

    The one that the tracker names is whole though nobody marked it: Megatron writes the tracker when all processes
    have ended their part.
    """
    step = _tracked(root)
    folder = root / f"{MEGATRON.prefix}{step}"
    if step and folder.is_dir() and not (folder / checkpoints.MARKER).exists() and _readable(folder):
        checkpoints.mark_complete(folder, MEGATRON)
    start = checkpoints.starting_point(root, report, MEGATRON)
    for name in (TRACKER, LATEST):
        (root / name).unlink(missing_ok=True)
    if start is not None:
        (root / TRACKER).write_text(f"{MEGATRON.step(start)}", encoding="ascii")
        (root / LATEST).write_text(start.name, encoding="ascii")
    return start


def _other_share(checkpoint: Path, job: Job) -> bool:
    """Whether ZeRO's optimizer in ``checkpoint`` is cut for another number of data-parallel processes than will run."""
    if not job.config["parallel"]["zero"]:
        return False
    cut = len(list(checkpoint.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))
    return bool(cut) and cut != job.config["run"]["data_parallel"]


def _universal(checkpoint: Path, launch: Mapping[str, Any], folder: Path, report: Reporter) -> Mapping[str, Any]:
    """The launch that continues from DeepSpeed's universal form of ``checkpoint``, which is made first.

    (``deepspeed.checkpoint.ds_to_universal``; Megatron reads it with ``--universal-checkpoint``.) Raises
    :class:`UcllmError` where there is no such form.
    """
    target = checkpoint.with_name(f"{checkpoint.name}_universal")
    shutil.rmtree(target, ignore_errors=True)
    words = ("--input_folder", str(checkpoint), "--output_folder", str(target))
    report.note(_("Another number of GPUs: the optimizer's parts are put together and cut anew."))
    making = {**launch, "argv": [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words]}
    heard = Heard()
    code = run(making, folder, heard.take, report)
    if code != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise UcllmError(
            "pretrain.other-share",
            _("The checkpoint cannot be continued on another number of GPUs."),
            heard.errors[0]
            if heard.errors
            else _("DeepSpeed could not convert it (exit code {code}).").format(code=code),
            _("Use as many GPUs as before: its optimizer is cut into {count} parts.").format(
                count=len(list(checkpoint.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))
            ),
        )
    return {**launch, "argv": [*launch["argv"], "--universal-checkpoint"]}


def _tracked(root: Path) -> int:
    try:
        return int((root / TRACKER).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _readable(folder: Path) -> bool:
    """Whether every file of a checkpoint ends as torch ends its files: a cut one does not."""
    found = list(folder.glob("*.pt"))
    return bool(found) and all(zipfile.is_zipfile(path) for path in found)


def run(launch: Mapping[str, Any], folder: Path, hear: Callable[[str], bool], report: Reporter) -> int:
    """Start ``launch`` in ``folder`` and give each line it prints to ``hear``, and to our own output; its exit code.

    ``hear`` says whether the rest must end: a node that failed does not end the others by itself.
    A request to stop this process becomes one to every process that trains: they end the step and save. The second
    request, or :data:`STOP_SECONDS`, ends them.
    """
    env = {**os.environ, **launch["env"], RANKS: str(folder / "ranks")}
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
        preexec_fn=_die_with_us if sys.platform == "linux" else None,  # noqa: PLW1509  no thread runs yet
    )
    report.stopping(STOP_SECONDS)
    requests: list[int] = []

    def stop(_number: int, _frame: Any) -> None:
        requests.append(1)
        if len(requests) > 1 or not _ask(folder / "ranks"):
            child.kill()
        else:
            report.note(_("Asked to stop: the step ends and a checkpoint is saved."))
            timer = threading.Timer(STOP_SECONDS, child.kill)
            timer.daemon = True
            timer.start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with child.stdout as output:  # type: ignore[union-attr]  # it is a pipe
            for line in _lines(output):
                print(line, flush=True)
                if hear(line):
                    child.terminate()
        return child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ask(ranks: Path) -> bool:
    """Ask every training process of this machine to stop; whether there was one. They tell those of other machines."""
    host, asked = os.uname().nodename, False
    for path in ranks.glob(f"{host}-*"):
        try:
            os.kill(int(path.read_text(encoding="ascii")), signal.SIGTERM)
            asked = True
        except (OSError, ValueError):
            continue
    return asked


def _lines(output: IO[bytes]) -> Any:
    for block in output:
        yield block.decode("utf-8", "replace").rstrip("\n")


def _hear(line: str, job: Job, report: Reporter, heard: Heard) -> bool:
    """Take in a line; whether it says that a node has failed."""
    line = _PREFIX.sub("", line) if len(job.config["run"]["hosts"]) > 1 else line
    heard.take(line)
    said = megatron_log.read(line)
    if said is None:
        return False
    kind = said.pop("kind")
    if kind == "step":
        settings = job.config["pretrain"]
        every = said["step"] - (heard.steps[-1]["step"] if heard.steps else 0)
        seconds = said.get("milliseconds", 0.0) / 1000
        per_step = settings["global_batch_size"] * settings["seq_length"]
        heard.seconds += seconds * every
        entry = {"kind": kind, **said, "seconds": seconds * every, "tokens_per_second": per_step / max(seconds, 1e-9)}
        if "loss" not in entry and not said.get("skipped"):
            entry["loss"] = math.nan
        heard.steps.append(entry)
        _remember(job, entry)
        shown = {name: entry[name] for name in ("loss", "tokens_per_second", "tflops") if name in entry}
        report.progress(said["step"], said["total"], "steps", **shown)
    elif kind == "validation":
        entry = {"kind": kind, "step": said["step"] or job.config["pretrain"]["steps"], "loss": said["loss"]}
        heard.validations.append(entry)
        _remember(job, entry)
    elif kind == "saved":
        checkpoints.mark_complete(job.checkpoints / f"{MEGATRON.prefix}{said['step']}", MEGATRON)
        checkpoints.tidy(job.checkpoints, job.config["run"]["keep_checkpoints"], MEGATRON)
    elif kind == "stopped":
        heard.stopped_by = said["by"]
    return bool(kind == "died")


def _remember(job: Job, entry: Mapping[str, Any]) -> None:
    with (job.checkpoints / HEARD).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def _judge(code: int, job: Job, heard: Heard) -> None:
    """Raise :class:`UcllmError` unless the training ended as it should."""
    losses = [entry["loss"] for entry in heard.steps if "loss" in entry]
    if losses and not math.isfinite(losses[-1]):
        raise UcllmError(
            "pretrain.diverged",
            _("The loss is not a number at step {step}.").format(step=heard.steps[-1]["step"]),
            hint=_("Lower `--set pretrain.learning_rate=…`, or raise `--set pretrain.warmup_steps=…`."),
        )
    if heard.stopped_by == "signal":
        saved = checkpoints.newest_complete(job.checkpoints, MEGATRON)
        raise UcllmError(
            "pretrain.stopped",
            _("The training was stopped."),
            _("Its checkpoint is {path}.").format(path=saved),
            _("Run the same command again; it continues from there."),
        )
    if code != 0:
        raise _failed(job, code, heard)


def _failed(job: Job, code: int, heard: Heard) -> UcllmError:
    log = job.home / "log.txt"
    return UcllmError(
        "pretrain.engine-failed",
        _("Megatron-DeepSpeed ended with exit code {code}.").format(code=code),
        heard.errors[0] if heard.errors else _("The end of its log:") + "\n" + "\n".join(heard.tail),
        _("Read {log}; `ucllm explain {log}` knows the usual causes.").format(log=log),
    )


def link_checkpoint(source: Path, target: Path) -> None:
    """Make ``target`` a folder of the checkpoint's weights, without a second copy where the disk can share them."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name.endswith("model_states.pt"):
            try:
                os.link(path, target / path.name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, target / path.name)
