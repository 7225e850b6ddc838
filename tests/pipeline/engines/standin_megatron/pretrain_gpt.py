"""A stand-in for Megatron-DeepSpeed's script: the same flags, log lines, files, signals; it trains nothing.

It reads and writes ``latest`` and ``latest_checkpointed_iteration.txt``, saves each checkpoint as zip files as torch
does, saves and ends the step when it is asked to stop, and counts through the steps that ``--train-samples`` asks for.
``STANDIN`` says what goes wrong: ``raise:STEP``, ``nan:STEP``, ``slow``, ``half:STEP`` (dies while it saves that step).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zipfile
from pathlib import Path

WORDS = sys.argv[1:]
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
WRONG, _, AT = os.environ.get("STANDIN", "").partition(":")
LINE = (
    " iteration {step:8d}/{total:8d} | consumed samples: {samples:12d} | consumed tokens: {tokens:12d} | "
    "elapsed time per iteration (ms): 20.0 | learning rate: 1.000E-04 | global batch size: {batch:5d} | "
    "lm loss: {loss} | actual seqlen: 32 | number of skipped iterations:   0 | number of nan iterations:   0 | "
    "samples per second: 50.000 | tokens per gpu per second (tgs): 99.000 | TFLOPs: 0.01 |"
)


def flag(name: str) -> str:
    return WORDS[WORDS.index(name) + 1]


def say(text: str) -> None:
    if RANK == WORLD - 1:
        print(text, flush=True)


def save(root: Path, step: int) -> None:
    folder = root / f"global_step{step}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (f"layer_01-model_{RANK:02}-model_states.pt", f"mp_rank_{RANK:02}_model_states.pt"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", f"step {step} of {WORLD}")
        if WRONG == "half" and step == int(AT):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    (root / "latest").write_text(folder.name)
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    say(f"  successfully saved checkpoint at iteration {step:7d} to {root}")


def meet() -> None:
    """A barrier: one that is early must not train, and save, before the others have read where to start."""
    folder = Path(os.environ["UCLLM_RANKS"])
    (folder / f"met-{os.getppid()}-{RANK}").touch()
    while len(list(folder.glob(f"met-{os.getppid()}-*"))) < WORLD:
        time.sleep(0.01)


def main() -> None:
    root = Path(flag("--save"))
    batch, length = int(flag("--global-batch-size")), int(flag("--seq-length"))
    total = int(flag("--train-samples")) // batch
    asked: list[int] = []
    if "--exit-signal-handler" in WORDS:
        signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    step = 0
    if (root / "latest").exists():
        step = int((root / "latest").read_text().removeprefix("global_step"))
        assert (root / f"global_step{step}").is_dir()
        say(f" loading checkpoint from {root} at iteration {step}")
    meet()
    while step < total:
        step += 1
        time.sleep(0.2 if WRONG == "slow" else 0.005)
        if WRONG == "raise" and step == int(AT):
            raise ValueError("stand-in fault\nof two lines")
        if step % int(flag("--log-interval")) == 0:
            loss = "NAN" if WRONG == "nan" and step >= int(AT) else f"{8 - 2 * step / total:.6E}"
            say(
                LINE.format(
                    step=step, total=total, samples=step * batch, tokens=step * batch * length, batch=batch, loss=loss
                )
            )
        if step % int(flag("--eval-interval")) == 0:
            value = f"{8 - 2 * step / total:.6E}"
            say(f" validation loss at iteration {step} | lm loss value: {value} | lm loss PPL: 1.0E+03 | ")
        if asked:
            save(root, step)
            say("[exiting program after receiving SIGTERM.] datetime: 2026-01-01 00:00:00 ")
            sys.exit()
        if step % int(flag("--save-interval")) == 0:
            save(root, step)
    save(root, step)


if __name__ == "__main__":
    main()
