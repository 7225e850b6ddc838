"""Run stages in order: skip what is up to date, start the rest in the environment, publish what they made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline import runs
from pipeline.config import canonical_json
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.launch import Launch
from pipeline.process import run_child, tail
from pipeline.stages import BY_NAME


@dataclass(frozen=True)
class Environment:
    """The Python that stages run with, and the folder for what they may write outside their run directory."""

    python: Path
    #: ``<workspace>/.ucllm``
    state: Path
    tool_version: str
    #: Recorded in the manifest: the user started without the checks.
    no_checks: bool = False
    #: All variables of the activated environment, for engines that are programs of it; ``None``: those of this process.
    variables: Mapping[str, str] | None = None


@dataclass(frozen=True)
class StageResult:
    """What happened to one stage. ``state`` is ``ran``, ``up-to-date`` or ``failed``; ``seconds`` is wall time."""

    stage: str
    state: str
    reason: str
    run_dir: str
    seconds: float
    metrics: Mapping[str, Any]


class Observer(Protocol):
    """Who watches a run: the terminal, a log, nobody."""

    def started(self, plan: runs.StagePlan, reason: str) -> None:
        """A stage is about to run, for ``reason``."""

    def event(self, plan: runs.StagePlan, event: Mapping[str, Any]) -> None:
        """A ``progress`` or ``note`` event of the stage's process (:mod:`pipeline.events`)."""

    def finished(self, result: StageResult) -> None:
        """A stage has ended, or needed nothing."""


class Silent:
    """An observer that nobody reads: the log holds all of it. What wants one thing overrides one method."""

    def started(self, plan: runs.StagePlan, reason: str) -> None:
        """Say nothing."""

    def event(self, plan: runs.StagePlan, event: Mapping[str, Any]) -> None:
        """Say nothing."""

    def finished(self, result: StageResult) -> None:
        """Say nothing."""


class StageFailed(Exception):  # noqa: N818  it carries the failure, and the results so far
    """A stage failed; ``results`` holds it, last, and those before it."""

    def __init__(self, stage: str, error: UcllmError, results: Sequence[StageResult]) -> None:
        super().__init__(stage)
        self.stage = stage
        self.error = error
        self.results = tuple(results)


def launch(plan: runs.StagePlan, environment: Environment) -> Launch:
    """What starting ``plan`` means. Reads and writes nothing."""
    cache = environment.state / "cache"
    env = {
        "PYTHONPATH": str(environment.state / "code"),
        # The environment and our code, nothing of the user's home or of the current folder.
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Caches stay in the workspace; HF_HOME is not moved, because the user's login lies there.
        "HF_HUB_CACHE": str(cache / "huggingface" / "hub"),
        "HF_DATASETS_CACHE": str(cache / "huggingface" / "datasets"),
        "HF_XET_CACHE": str(cache / "huggingface" / "xet"),
        "HF_ASSETS_CACHE": str(cache / "huggingface" / "assets"),
        "HF_MODULES_CACHE": str(cache / "huggingface" / "modules"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
    }
    chosen = {name: os.environ[name] for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE") if os.environ.get(name)}
    argv = (str(environment.python), "-m", "pipeline.child", str(plan.home / "job.json"))
    return Launch(argv, {**env, **chosen})


def link_code(environment: Environment) -> None:
    """Make ``.ucllm/code`` a folder that holds this package and nothing else, for the stages' PYTHONPATH."""
    link = environment.state / "code" / "pipeline"
    package = Path(__file__).parent
    if link.is_symlink() and link.readlink() == package:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".pipeline.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(package)
    temporary.replace(link)


def train(
    plans: Sequence[runs.StagePlan], environment: Environment, observer: Observer, *, force: bool = False
) -> list[StageResult]:
    """Bring every plan up to date, in order. Raises :class:`StageFailed` at the first that fails."""
    results: list[StageResult] = []
    for plan in plans:
        began = time.monotonic()
        try:
            result = _bring_up_to_date(plan, environment, observer, force)
        except (UcllmError, OSError) as failure:
            error = failure if isinstance(failure, UcllmError) else _not_writable(plan, failure)
            seconds = round(time.monotonic() - began, 2)
            failed = StageResult(plan.stage, "failed", error.problems[0].what, str(plan.home), seconds, {})
            observer.finished(failed)
            raise StageFailed(plan.stage, error, [*results, failed]) from failure
        observer.finished(result)
        results.append(result)
    return results


def _not_writable(plan: runs.StagePlan, error: OSError) -> UcllmError:
    """What to say when the tool itself could not read or write a file of the run."""
    return UcllmError(
        "output.not-writable",
        _("{stage} could not write {path}.").format(stage=plan.stage, path=error.filename or plan.home),
        str(error.strerror or error),
        _("Make room or choose another workspace, then run the same command again."),
    )


def _bring_up_to_date(plan: runs.StagePlan, environment: Environment, observer: Observer, force: bool) -> StageResult:
    state = runs.examine(plan)
    if state.manifest is not None and not state.reason and not force:
        return StageResult(plan.stage, "up-to-date", "", str(plan.home), 0.0, state.manifest["metrics"])
    with runs.locked(plan.home) as lock:
        # Another run may have finished it while this one waited. Inputs that are as they were are not read again.
        state = runs.examine(plan, state.inputs)
        reason = state.reason or (_("--force was given") if force else "")
        if state.manifest is not None and not reason:
            return StageResult(plan.stage, "up-to-date", "", str(plan.home), 0.0, state.manifest["metrics"])
        if not force:
            _refuse_foreign(plan)
        observer.started(plan, reason)
        if force:  # from the beginning, not from where the last run ended
            shutil.rmtree(plan.home / "checkpoints" / state.fingerprint[:12], ignore_errors=True)
        began = time.time()
        metrics = _run(plan, state, environment, observer, lock)
        if not force:
            _refuse_foreign(plan)  # hours may have passed
        _keep_what_others_wrote(plan, observer)
        _publish(plan)
        seconds = round(time.time() - began, 2)
        manifest = {
            "manifest_version": runs.MANIFEST_VERSION,
            "stage": plan.stage,
            "status": "complete",
            "fingerprint": state.fingerprint,
            "config": plan.config,
            "run": plan.run,
            "inputs": state.inputs,
            "outputs": {name: runs.describe(path) for name, path in plan.outputs.items()},
            "argv": (plan.launch or launch(plan, environment)).argv,
            "versions": {"ucllm": environment.tool_version, **metrics.pop("versions", {})},
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
            "seconds": seconds,
            "checks_skipped": environment.no_checks,
            "metrics": metrics,
        }
        runs.write_manifest(plan.home, manifest)
        shutil.rmtree(plan.work, ignore_errors=True)
    return StageResult(plan.stage, "ran", reason, str(plan.home), seconds, metrics)


def _refuse_foreign(plan: runs.StagePlan) -> None:
    """Refuse to replace what lies where an output of the user's own goes, unless this run directory made it.

    Raises :class:`UcllmError` before anything starts.
    """
    problems = [
        Problem(
            "output.exists",
            _("{path} is there already, and {stage} did not make it.").format(path=path, stage=plan.stage),
            hint=_("Choose another `--output`, move it away, or replace it with `--force`."),
        )
        for path in plan.outputs.values()
        if os.path.lexists(path) and _is_foreign(plan, path)
    ]
    if problems:
        raise UcllmError.of(problems)


def _keep_what_others_wrote(plan: runs.StagePlan, observer: Observer) -> None:
    """Put aside, not away, what would be replaced and is not what we made: other files, or ours with changes."""
    manifest = runs.read_manifest(plan.home)
    for name, path in plan.outputs.items():
        if not os.path.lexists(path):
            continue
        before = (manifest or {}).get("outputs", {}).get(name)
        altered = before is not None and runs.describe(path, before)["sha256"] != before["sha256"]
        if altered or _is_foreign(plan, path):
            aside = path.with_name(f"{path.name}.kept-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(aside)
            text = _("What was in {path} is kept in {aside}.").format(path=path, aside=aside)
            observer.event(plan, {"event": "note", "text": text})


def _is_foreign(plan: runs.StagePlan, path: Path) -> bool:
    """Whether ``path`` is neither in the run directory nor something that runs in it have published."""
    return plan.home not in path.parents and str(path) not in _published(plan.home)


def _published(home: Path) -> set[str]:
    """Where runs in this directory have put, or were about to put, their outputs."""
    try:
        return {str(path) for path in json.loads((home / "job.json").read_text(encoding="utf-8"))["publishes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _run(
    plan: runs.StagePlan, state: runs.State, environment: Environment, observer: Observer, lock: int
) -> dict[str, Any]:
    link_code(environment)
    launched = {"launch": dataclasses.asdict(plan.launch)} if plan.launch else {}
    job = {
        "stage": plan.stage,
        "config": {**plan.config, "run": {**plan.run, **launched}},
        "inputs": {name: str(path) for name, path in plan.inputs.items()},
        "outputs": {name: str(plan.work / path.name) for name, path in plan.outputs.items()},
        "home": str(plan.home),
        "work": str(plan.work),
        "checkpoints": str(plan.home / "checkpoints" / state.fingerprint[:12]),
        "publishes": sorted(_published(plan.home)),
    }
    runs.write_text_atomically(plan.home / "job.json", canonical_json(job) + "\n")
    log = plan.home / runs.LOG
    if log.exists():
        log.replace(log.with_suffix(".previous.txt"))
    metrics: dict[str, Any] | None = None
    problems: list[Problem] = []

    def on_event(event: dict[str, Any]) -> None:
        nonlocal metrics
        if event["event"] == "done":
            metrics = event["metrics"]
        elif event["event"] == "error":
            problems.extend(Problem(*item) for item in event["problems"])
        else:
            observer.event(plan, event)

    start = launch(plan, environment)
    try:
        code = run_child(
            start.argv,
            env={**(os.environ if environment.variables is None else environment.variables), **start.env},
            cwd=environment.state / "code",
            log=log,
            on_event=on_event,
            inherit=(lock,),
        )
    except OSError as error:
        if error.filename != start.argv[0]:
            raise
        raise UcllmError(
            "stage.not-started",
            _("Cannot start {stage} with {python}.").format(stage=plan.stage, python=start.argv[0]),
            str(error.strerror),
            _("Make the environment with `ucllm setup`."),
        ) from error
    if problems:
        raise UcllmError.of(problems)
    if code != 0 or metrics is None:
        ended = (
            _("by signal {number}").format(number=-code) if code < 0 else _("with exit code {code}").format(code=code)
        )
        raise UcllmError(
            "stage.died",
            _("The process of {stage} ended {how}.").format(stage=plan.stage, how=ended),
            _("The end of its log:") + "\n" + tail(log),
            _("Read {log}, then run the same command again; it continues where it stopped.").format(log=log),
        )
    return metrics


def _publish(plan: runs.StagePlan) -> None:
    """Move what the stage made into place. The old manifest goes first: a half-published stage is not done."""
    # Whoever replaces these later must know that they are ours. Not said earlier: a run that fails made nothing.
    job = json.loads((plan.home / "job.json").read_text(encoding="utf-8"))
    job["publishes"] = sorted({*job["publishes"], *map(str, plan.outputs.values())})
    runs.write_text_atomically(plan.home / "job.json", canonical_json(job) + "\n")
    (plan.home / runs.MANIFEST).unlink(missing_ok=True)
    for path in plan.outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = plan.work / path.name
        if path.is_dir() or (path.exists() and made.is_dir()):
            # A folder cannot be replaced by rename; `home` is beside it, so this is a rename too.
            aside = path.with_name(f".{path.name}.replaced")
            runs.remove(aside)
            path.replace(aside)
            made.replace(path)
            with contextlib.suppress(OSError):  # the new one is in place all the same
                runs.remove(aside)
        else:
            made.replace(path)


def exit_code(stage: str) -> int:
    """The exit code of a failure in ``stage``."""
    return BY_NAME[stage].exit_code
