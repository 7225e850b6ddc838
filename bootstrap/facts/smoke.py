"""The smoke section: a real training of two steps, from text to a model, in a folder of its own.

Unlike the other collectors this one writes, and only under ``<workspace>/.ucllm``: no run of the user's is touched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.facts import SmokeFacts
from pipeline.errors import UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from bootstrap.facts.collect import Request

#: The only engine whose training is short enough to be a check. Others give facts with their name and nothing else.
ENGINE = "torch"
#: Two: the second step is the first one that uses what the optimizer made of the first.
STEPS = 2
#: Everything that decides the size of the run: a model of 0.1 million parameters and samples of 32 tokens. 320 pieces
#: are the 264 fixed ones (bytes and special tokens), the letters of :func:`text`, and some real ones.
SETTINGS: Mapping[str, Any] = {
    "tokenizer.vocab_size": 320,
    "model.layers": 2,
    "model.hidden_size": 64,
    "model.heads": 2,
    "pretrain.engine": ENGINE,
    "pretrain.steps": STEPS,
    "pretrain.seq_length": 32,
    "pretrain.micro_batch_size": 2,
    "pretrain.global_batch_size": 4,
    "pretrain.validation_fraction": 0.0,
    "pretrain.eval_interval": STEPS,
    "pretrain.save_interval": STEPS,
    "pretrain.keep_checkpoints": 1,
    "pretrain.log_interval": 1,
}
STAGES = ("tokenizer", "corpus", "pretrain")
#: Sentences of :func:`text`: about 20 kB.
SENTENCES = 500


def collect(request: Request) -> SmokeFacts:
    """Train two steps with the profile's engine. A failure is a fact with its log, never an exception."""
    engine = request.profile.engines.get("pretrain", "")
    if engine != ENGINE:
        return SmokeFacts(engine)
    # A profile that adopts a Python has none in the workspace; the env section knows which one it is.
    python = request.section("env").python or str(request.workspace.python)
    began = time.monotonic()
    loss, error, log = _train(Path(python), request.workspace.state)
    seconds = round(time.monotonic() - began, 2)
    return SmokeFacts(engine, 0 if error else STEPS, loss, seconds, error, log)


def folder_in(state: Path) -> Path:
    """Where the training lies, below the workspace's ``.ucllm``."""
    return state / "cache" / "smoke"


def _train(python: Path, state: Path) -> tuple[float | None, str, str]:
    """Run the three stages anew; the last loss, the error (empty: none), and the log that tells more."""
    from bootstrap import __version__
    from pipeline import runs
    from pipeline.recipe import resolve
    from pipeline.stages import Sources, module_of
    from pipeline.train import Environment, Silent, StageFailed, train

    folder = folder_in(state)
    sources = Sources(folder / "run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_text_atomically(folder / "text.txt", text())
        config = resolve("", (), {**SETTINGS, "data.input": [str(folder / "text.txt")]})
        plans = [module_of(name).plan(name, config, sources) for name in STAGES]
        results = train(plans, Environment(python, state, __version__), Silent(), force=True)
    except StageFailed as failure:
        home = sources.home(failure.stage)
        log = home / runs.LOG
        return None, _told(failure.error), str(log) if log.is_file() else ""
    except UcllmError as error:
        return None, _told(error), ""
    except OSError as error:
        return None, f"{error.filename}: {error.strerror}", ""
    loss = results[-1].metrics["loss_last"]
    log = sources.home("pretrain") / runs.LOG
    if not math.isfinite(loss):
        return None, _("The loss is not a number: {loss}.").format(loss=loss), str(log)
    return float(loss), "", str(log)


def _told(error: UcllmError) -> str:
    return "\n".join(problem.message for problem in error.problems)


def text() -> str:
    """Sentences made by counting: the same text everywhere, with nobody's rights in it."""
    who = ("a miller", "the old captain", "my sister", "some child", "every neighbour", "that quick fox", "one judge")
    does = (
        "finds",
        "carries",
        "paints",
        "hides",
        "measures",
        "forgets",
        "sells",
        "examines",
        "waxes",
        "keeps",
        "joins",
    )
    what = ("a lantern", "the heavy box", "two maps", "an apple", "this violin", "blue paper", "the kitchen clock")
    where = ("by the river", "under a bridge", "at noon", "in the yard", "before winter", "with zeal")
    lines = []
    for number in range(SENTENCES):
        # Steps that share no factor with the lists' lengths, so that the combinations do not repeat at once.
        words = (who[number % 7], does[number * 3 % 11], what[number * 5 // 7 % 7], where[number * 5 % 6])
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines) + "\n"
