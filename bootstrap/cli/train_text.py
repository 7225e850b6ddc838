"""What a person sees of a training run: progress with an ETA on a terminal, plain lines in a pipe, a summary."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap.cli.base import style
from pipeline.i18n import _
from pipeline.runs import LOG, StagePlan
from pipeline.stages import BY_NAME
from pipeline.train import StageResult

#: Seconds between two lines about the same stage where lines cannot be redrawn.
PLAIN_INTERVAL_S = 15.0


class Terminal:
    """An :class:`pipeline.train.Observer` on standard error."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._redraw = sys.stderr.isatty()
        self._drawn = False
        self._told = time.monotonic()
        self._series: tuple[str, float] = ("", 0.0)
        self._first = (0.0, 0.0)

    def say(self, text: str) -> None:
        """One line, in whole."""
        self._clear()
        click.echo(f"    {text}", err=True)

    def started(self, plan: StagePlan, reason: str) -> None:
        """The stage's line, with the reason it runs."""
        self._number += 1
        self._told = time.monotonic()
        self._series = ("", 0.0)
        title = _(BY_NAME[plan.stage].title)
        head = style(f"[{self._number}/{self._total}] {plan.stage}", "cyan", err=True)
        click.echo(f"{head}: {title} ({reason})", err=True)

    def event(self, plan: StagePlan, event: Mapping[str, Any]) -> None:  # noqa: ARG002  the Observer's signature
        """Progress and notes."""
        if event["event"] == "note":
            self.say(str(event["text"]))
            return
        now = time.monotonic()
        line = _progress_line(event, self._seconds_left(event, now))
        if self._redraw:
            width = shutil.get_terminal_size().columns - 1
            click.echo("\r" + f"    {line}"[:width].ljust(width), err=True, nl=False)
            self._drawn = True
        elif now - self._told >= PLAIN_INTERVAL_S:
            self._told = now
            click.echo(f"    {line}", err=True)

    def _seconds_left(self, event: Mapping[str, Any], now: float) -> float | None:
        """By the speed since the first event of its kind: a run that is continued does not begin at 0."""
        done, total = float(event["done"]), float(event["total"])
        if (event["unit"], total) != self._series or done < self._first[0]:
            self._series, self._first = (event["unit"], total), (done, now)
        begun, since = self._first
        if not begun < done < total or now - since <= 2:
            return None
        return (now - since) / (done - begun) * (total - done)

    def finished(self, result: StageResult) -> None:
        """The stage's last line."""
        self._clear()
        if result.state == "up-to-date":
            self._number += 1
            head = style(f"[{self._number}/{self._total}] {result.stage}", "cyan", err=True)
            click.echo(f"{head}: " + _("up to date"), err=True)
        elif result.state == "ran":
            facts = _facts(result.metrics)
            click.echo("    " + _("done in {seconds} s").format(seconds=round(result.seconds, 1)) + facts, err=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            width = shutil.get_terminal_size().columns - 1
            click.echo("\r" + " " * width + "\r", err=True, nl=False)
            self._drawn = False


def _progress_line(event: Mapping[str, Any], left: float | None) -> str:
    done, total = float(event["done"]), float(event["total"])
    parts = [f"{done:.0f}/{total:.0f} {event['unit']}"]
    parts += [f"{name} {_short(value)}" for name, value in event["metrics"].items()]
    if left is not None:
        parts.append(_("{time} left").format(time=duration(left)))
    return ", ".join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


#: The metrics worth a place on the stage's last line.
_SHOWN = ("vocab_size", "documents", "tokens", "val_loss", "tokens_per_second", "answer_loss")


def _facts(metrics: Mapping[str, Any]) -> str:
    shown = [f"{name} {_short(metrics[name])}" for name in _SHOWN if isinstance(metrics.get(name), (int, float))]
    return ": " + ", ".join(shown) if shown else ""


def render(data: Mapping[str, Any]) -> str:
    """The summary on standard output: what was learned, a sample, where the model is, and the next command."""
    if "plans" in data:
        return _render_plans(data)
    if "job" in data:
        text = _("submitted as job {job}: {script}")
        return text.format(job=data["job"], script=data["script"])
    results = {result["stage"]: result for result in data["stages"]}
    lines: list[str] = []
    metrics = {stage: result["metrics"] for stage, result in results.items()}
    pretrain, finetune = metrics.get("pretrain"), metrics.get("finetune")
    if pretrain and "val_loss" in pretrain:
        text = _(
            "pretraining: loss {first:.2f} → {last:.2f}, on unseen text {val:.2f} "
            "(word frequencies alone: {unigram:.2f})"
        )
        if pretrain["val_loss"] is None:  # nothing was held out
            text = _("pretraining: loss {first:.2f} → {last:.2f} (word frequencies alone: {unigram:.2f})")
        lines.append(
            text.format(
                first=pretrain["loss_first"],
                last=pretrain["loss_last"],
                val=pretrain["val_loss"],
                unigram=pretrain["unigram_entropy"],
            )
        )
        lines.append(_("speed: {speed:,.0f} tokens/s").format(speed=pretrain["tokens_per_second"]))
    if finetune and finetune.get("answer_loss") is not None:
        lines.append(
            _("fine-tuning: loss on unseen answers {first:.2f} → {last:.2f}").format(
                first=finetune["answer_loss_base"], last=finetune["answer_loss"]
            )
        )
    for stage in ("upload-pretrained", "upload-finetuned"):
        found = metrics.get(stage, {})
        if found.get("sample"):
            lines.append(
                _("sample of {stage}: {text}").format(stage=stage, text=" ".join(str(found["sample"]).split()))
            )
    for stage in ("pretrain", "finetune"):
        if stage in results and results[stage]["state"] != "failed":
            lines.append(_("loss curve: {path}").format(path=results[stage]["run_dir"] + "/loss.svg"))
    failed = [result for result in data["stages"] if result["state"] == "failed"]
    logs = [Path(result["run_dir"]) / LOG for result in failed]
    lines += [_("log: {path}").format(path=path) for path in logs if path.exists()]
    for stage in ("upload-pretrained", "upload-finetuned"):
        found = metrics.get(stage, {})
        if found.get("pushed"):
            lines.append(_("published: {url}").format(url=found.get("url", "")))
        elif found.get("folder"):
            lines.append(_("model: {path}").format(path=found["folder"]))
            lines.append(_("publish it: `{command}`").format(command=found.get("publish_command", "")))
    return "\n".join(lines)


def _render_plans(data: Mapping[str, Any]) -> str:
    lines = []
    for plan in data["plans"]:
        lines.append(f"{plan['stage']}:")
        for name, path in plan["inputs"].items():
            lines.append(f"  {name} ← {path}")
        lines.append("  $ " + " ".join(plan["launch"]["argv"]))
        for name, path in plan["outputs"].items():
            lines.append(f"  {name} → {path}")
    problems = [finding for finding in data["findings"] if finding["status"] != "ok"]
    lines += [f"! {finding['id']}: {finding['summary']}" for finding in problems]
    estimate = data["estimate"]
    days = estimate["days"]
    lines.append(
        _("pretraining takes about {time}, {memory} MB of memory a process and {disk} MB of disk").format(
            time=_("{days:,.0f} days").format(days=days) if days >= 3 else duration(estimate["seconds"]),
            memory=f"{estimate['memory_bytes'] / 1e6:,.0f}",
            disk=f"{estimate['disk_bytes'] / 1e6:,.0f}",
        )
    )
    return "\n".join(lines)
