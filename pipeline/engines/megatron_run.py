"""Engine ``megatron-deepspeed`` at work: start the launch, hear its log, keep its checkpoints, stop it cleanly."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.checkpoints import MEGATRON
from pipeline.engines import megatron, megatron_log, megatron_start, program
from pipeline.errors import UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.events import Reporter

#: Megatron's pointer to the checkpoint that every process has finished, and DeepSpeed's.
TRACKER, LATEST = "latest_checkpointed_iteration.txt", "latest"
#: The ending of the folder of DeepSpeed's universal form, which is made for one start.
UNIVERSAL = "_universal"
#: Beside the checkpoints: what was heard so far, a JSON object a line.
HEARD = "heard.jsonl"


@dataclass
class Heard(program.Heard):
    """What the log said: entries of steps and validations, in order."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)


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
    launch, steps = job.config["run"]["launch"], job.config["pretrain"]["steps"]
    folder = program.write_files(job.home / "launch", launch["files"])
    program.point_to_checkpoints(job.home / "checkpoint", job.checkpoints)
    start = starting_point(job.checkpoints, report)
    heard = _remembered(job.checkpoints / HEARD, MEGATRON.step(start) if start else 0)
    if start is not None and _other_share(start, job):
        launch = _universal(start, launch, folder, report)
    code = 0
    if start is None or MEGATRON.step(start) < steps:
        code, asked = program.run(launch, folder, lambda line: _hear(line, job, report, heard), report)
        _judge(code, asked, job, heard)
    found = checkpoints.newest_complete(job.checkpoints, MEGATRON)
    # A launcher whose own child was killed may end with 0.
    if found is None or (MEGATRON.step(found) < steps and not heard.stopped_by):
        raise _failed(job, code, heard)
    _remove_universal(job.checkpoints)
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


def starting_point(root: Path, report: Reporter) -> Path | None:
    """The newest whole checkpoint, and the pointers of Megatron and DeepSpeed set to it.

    The one that the tracker names is whole though nobody marked it: Megatron writes the tracker when all processes
    have ended their part.
    """
    step = _tracked(root)
    folder = root / f"{MEGATRON.prefix}{step}"
    if step and folder.is_dir() and not (folder / checkpoints.MARKER).exists() and _readable(folder):
        checkpoints.mark_complete(folder, MEGATRON)
    _remove_universal(root)
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
    return _parts(checkpoint) not in (0, job.config["run"]["data_parallel"])


def _parts(checkpoint: Path) -> int:
    return len(list(checkpoint.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))


def _universal(checkpoint: Path, launch: Mapping[str, Any], folder: Path, report: Reporter) -> Mapping[str, Any]:
    """The launch that continues from DeepSpeed's universal form of ``checkpoint``, which is made first.

    (``deepspeed.checkpoint.ds_to_universal``; Megatron reads it with ``--universal-checkpoint``.) Raises
    :class:`UcllmError` where there is no such form.
    """
    target = checkpoint.with_name(f"{checkpoint.name}{UNIVERSAL}")
    package = importlib.util.find_spec("deepspeed")
    where = Path(package.origin).parent if package and package.origin else Path()
    # By the start module: DeepSpeed needs the same measures here.
    script = [sys.executable, megatron_start.__file__, str(where / "checkpoint" / "ds_to_universal.py")]
    making = {
        "argv": [*script, "--input_folder", str(checkpoint), "--output_folder", str(target)],
        # The checkpoint's arguments are of Megatron's own types.
        "env": {**launch["env"], "WANDB_MODE": "disabled", "PYTHONPATH": os.pathsep.join(_places(launch))},
    }
    report.note(_("Another number of GPUs: the optimizer's parts are put together and cut anew."))
    heard = program.Heard()
    code, asked = program.run(making, folder, heard.take, report)
    if asked:
        raise program.stopped("pretrain", checkpoint)
    if code != 0:
        what = _("The checkpoint cannot be continued on another number of GPUs.")
        why = heard.errors[0] if heard.errors else _("DeepSpeed ended with exit code {code}.").format(code=code)
        hint = _("Use as many GPUs as before: its optimizer is cut into {count} parts.")
        raise UcllmError("pretrain.other-share", what, why, hint.format(count=_parts(checkpoint)))
    return {**launch, "argv": [*launch["argv"], "--universal-checkpoint"]}


def _places(launch: Mapping[str, Any]) -> list[str]:
    script = next(word for word in launch["argv"] if word.endswith(megatron.SCRIPT))
    return [*filter(None, [os.environ.get("PYTHONPATH", "")]), str(Path(script).parent)]


def _remove_universal(root: Path) -> None:
    for folder in root.glob(f"{MEGATRON.prefix}*{UNIVERSAL}"):
        shutil.rmtree(folder, ignore_errors=True)


def _tracked(root: Path) -> int:
    try:
        return int((root / TRACKER).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _readable(folder: Path) -> bool:
    """Whether every file of a checkpoint ends as torch ends its files: a cut one does not."""
    found = list(folder.glob("*.pt"))
    return bool(found) and all(zipfile.is_zipfile(path) for path in found)


def _hear(line: str, job: Job, report: Reporter, heard: Heard) -> bool:
    """Take in a line; whether it says that a node has failed."""
    # pdsh names the node before each line that it prints.
    host, colon, rest = line.partition(": ")
    line = rest if colon and host in job.config["run"]["hosts"] else line
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


def _judge(code: int, asked: bool, job: Job, heard: Heard) -> None:
    """Raise :class:`UcllmError` unless the training ended as it should."""
    losses = [entry["loss"] for entry in heard.steps if "loss" in entry]
    if losses and not math.isfinite(losses[-1]):
        raise UcllmError(
            "pretrain.diverged",
            _("The loss is not a number at step {step}.").format(step=heard.steps[-1]["step"]),
            hint=_("Lower `--set pretrain.learning_rate=…`, or raise `--set pretrain.warmup_steps=…`."),
        )
    if heard.stopped_by == "signal" or asked:
        raise program.stopped("pretrain", checkpoints.newest_complete(job.checkpoints, MEGATRON))
    if code != 0:
        raise _failed(job, code, heard)


def _failed(job: Job, code: int, heard: Heard) -> UcllmError:
    log = job.home / "log.txt"
    return UcllmError(
        "pretrain.engine-failed",
        _("Megatron-DeepSpeed ended with exit code {code}.").format(code=code),
        heard.why,
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
