"""What a person sees of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.cli import train_text
from pipeline.runs import StagePlan


def test_a_summary_without_anything_held_out() -> None:
    pretrain = {"loss_first": 7.0, "loss_last": 3.0, "val_loss": None, "unigram_entropy": 5.0, "tokens_per_second": 9.0}
    finetune = {"answer_loss": None, "answer_loss_base": None}
    common = {"state": "ran", "run_dir": "x"}
    stages = [{"stage": "pretrain", "metrics": pretrain}, {"stage": "finetune", "metrics": finetune}]
    text = train_text.render({"stages": [{**common, **stage} for stage in stages]})
    assert "7.00 → 3.00 (" in text
    assert "None" not in text


def test_the_time_left_of_a_continued_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It began at step 900: the first 900 took this process no time."""
    clock = iter((0.0, 0.0, 10.0, 30.0))  # made, started, and each event
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    terminal, plan = train_text.Terminal(1), StagePlan("pretrain", Path("x"), {}, {}, {})
    terminal.started(plan, "")
    for done in (900, 910):
        terminal.event(plan, {"event": "progress", "done": done, "total": 1000, "unit": "steps", "metrics": {}})
    assert "910/1000 steps, 3:00 left" in capsys.readouterr().err
