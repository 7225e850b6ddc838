"""What the engines' Trainers tell while they train: progress, speed, TensorBoard, and a loss that is not a number."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from pipeline.events import Reporter


def watcher_class() -> Any:
    """The ``TrainerCallback`` that both engines extend; a function, because transformers is imported only here.

    ``Watcher(report, tensorboard, tags, stage, hint)``: ``tags`` maps what a log entry may hold to its TensorBoard tag;
    ``stage`` and ``hint`` are for the error when the loss is not a number. ``steps`` and ``seconds`` are those that
    this process trained, evaluation and saving left out. ``deadline`` (of ``time.monotonic``) stops the training after
    the first step that ends behind it, with an evaluation, if there are any, and a checkpoint; ``out_of_time`` says so.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers is not analysed: pyproject.toml
        def __init__(self, report: Reporter, tensorboard: Path, tags: Mapping[str, str], stage: str, hint: str) -> None:
            self.report, self.tensorboard, self.tags = report, tensorboard, tags
            self.stage, self.hint = stage, hint
            self.steps, self.seconds, self.since = 0, 0.0, 0.0
            self.latest: dict[str, float] = {}
            self.writer: Any = None
            self.deadline, self.out_of_time = math.inf, False

        def step_ended(self, state: Any) -> None:
            """For an engine that has something to do before the step is logged and saved."""

        def shown(self, entry: dict[str, Any]) -> dict[str, float]:
            """What of a training log entry goes with the progress; may add to the entry."""
            return {"loss": entry["loss"]}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  the Trainer's
            # Written anew from the history, so that a run that was continued shows each step once.
            self.writer = tensorboard_writer(self.tensorboard, self.report)
            for entry in state.log_history:
                self.write(entry)
            self.since = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  the Trainer's
            now = time.perf_counter()
            self.steps, self.seconds, self.since = self.steps + 1, self.seconds + now - self.since, now
            self.step_ended(state)
            if time.monotonic() >= self.deadline and not control.should_training_stop:
                self.out_of_time = control.should_training_stop = control.should_save = True
                control.should_evaluate = args.eval_strategy != "no"
            # A logged loss is the mean since the last one: a continued run must not begin inside such a stretch.
            control.should_log = control.should_log or control.should_save
            self.report.progress(state.global_step, state.max_steps, "steps", **self.latest)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            entry = state.log_history[-1]
            if not all(math.isfinite(entry[name]) for name in ("loss", "eval_loss") if name in entry):
                raise _diverged(self.stage, entry["step"], self.hint)
            if "loss" in entry:
                self.latest = self.shown(entry)
            self.write(entry)

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            self.since = time.perf_counter()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if self.writer is not None:
                self.writer.flush()
            self.since = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if self.writer is not None:
                self.writer.close()

        def write(self, entry: Mapping[str, Any]) -> None:
            """Send what the entry holds to TensorBoard."""
            for key, tag in self.tags.items():
                if self.writer is not None and key in entry:
                    self.writer.add_scalar(tag, entry[key], entry["step"])

    return Watcher


def tensorboard_writer(folder: Path, report: Reporter) -> Any:
    """A TensorBoard writer to ``folder``, emptied first; ``None``, with a note, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        report.note(_("TensorBoard is not installed here: no event files are written."))
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def _diverged(stage: str, step: int, hint: str) -> UcllmError:
    what = _("The loss is not a number at step {step}.").format(step=step)
    return UcllmError(f"{stage}.diverged", what, _("The training diverged; no checkpoint holds what came of it."), hint)
