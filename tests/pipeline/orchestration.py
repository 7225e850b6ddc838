"""Bring the stand-in stage up to date as `ucllm train` does, with this Python as the environment."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import train
from pipeline.config import Config
from pipeline.runs import StagePlan
from pipeline.stages import Sources
from pipeline.train import Environment, StageFailed, StageResult
from tests.conftest import REPOSITORY
from tests.pipeline import stand_in
from tests.pipeline.conftest import Quiet

#: What the child runs: the real `pipeline.child`, which finds the stand-in under the tokenizer's name.
_CHILD = """#!/bin/sh
export PYTHONPATH="$PYTHONPATH:{repository}"
shift 2
exec {python} -c 'import pipeline.stages as stages, tests.pipeline.stand_in as stand_in, pipeline.child as child, sys
child.module_of = lambda stage: stand_in
sys.exit(child.main())' "$@"
"""


@dataclass
class Bench:
    """A folder with an input, and everything that :func:`pipeline.train.train` wants."""

    root: Path
    environment: Environment

    @property
    def home(self) -> Path:
        return self.plan().home

    @property
    def source(self) -> Path:
        return self.root / "in.txt"

    def plan(self, how: str = "", output: Path | None = None, **settings: object) -> StagePlan:
        made = stand_in.plan("tokenizer", Config(), Sources(self.root, output=output))
        return stand_in.doing(made, how, **settings)

    def train(self, plan: StagePlan | None = None, *, force: bool = False) -> StageResult:
        return train.train([plan or self.plan()], self.environment, Quiet(), force=force)[0]

    def failure(self, plan: StagePlan, *, force: bool = False) -> StageFailed:
        with pytest.raises(StageFailed) as caught:
            self.train(plan, force=force)
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    root = tmp_path / "output" / "recipe"
    root.mkdir(parents=True)
    (root / "in.txt").write_text("abc", encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(_CHILD.format(repository=REPOSITORY, python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    return Bench(root, Environment(python, tmp_path / ".ucllm", "9.9"))
