"""Checkpoints that a kill at any moment cannot spoil: one counts only if its marker lists what it holds, with hashes.

A trainer writes a checkpoint file by file, and the folder's name is there from the first one. The marker is written
last, by rename, so that a folder without one, or with other content than it says, is known to be unfinished.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.i18n import _
from pipeline.runs import describe, write_text_atomically

if TYPE_CHECKING:
    from pipeline.events import Reporter

MARKER = "complete.json"


@dataclass(frozen=True)
class Kind:
    """Whose checkpoints: folders named ``prefix`` and the step. ``hashed``: the marker has sha256, else only sizes.

    Sizes will do where a checkpoint may have a terabyte, and the training must not wait for it to be read again.
    """

    prefix: str
    hashed: bool

    def step(self, folder: Path) -> int:
        """The step at which this checkpoint was saved."""
        return int(folder.name[len(self.prefix) :])


#: Those of Hugging Face's Trainer, and of DeepSpeed as Megatron calls it.
TRAINER, MEGATRON = Kind("checkpoint-", hashed=True), Kind("global_step", hashed=False)


def _content(folder: Path, kind: Kind) -> dict[str, Any]:
    """The sha256 or size of every file of a checkpoint but its marker."""
    if kind.hashed:
        found = {name: entry["sha256"] for name, entry in describe(folder)["files"].items()}
    else:
        found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {name: value for name, value in sorted(found.items()) if name != MARKER}


def mark_complete(folder: Path, kind: Kind = TRAINER) -> None:
    """Declare the checkpoint in ``folder`` whole. The last thing to do to it."""
    write_text_atomically(folder / MARKER, json.dumps(_content(folder, kind), indent=1) + "\n")


def is_complete(folder: Path, kind: Kind = TRAINER) -> bool:
    """Whether the checkpoint is exactly what its marker says."""
    try:
        named = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return bool(named) and named == _content(folder, kind)
    except (OSError, ValueError):
        return False


def _newest_first(root: Path, kind: Kind) -> list[Path]:
    """The checkpoint folders in ``root``, the highest step first."""
    found = [path for path in root.glob(f"{kind.prefix}*") if path.name[len(kind.prefix) :].isdigit()]
    return sorted(found, key=kind.step, reverse=True)


def newest_complete(root: Path, kind: Kind = TRAINER) -> Path | None:
    """The newest whole checkpoint in ``root``; ``None`` when there is none, or no ``root``."""
    return next((folder for folder in _newest_first(root, kind) if is_complete(folder, kind)), None)


def tidy(root: Path, keep: int, kind: Kind = TRAINER) -> None:
    """Remove all but the ``keep`` newest whole checkpoints. One above them without a marker is being written.

    The Trainer's own limit would remove an old one before the new one is marked, and so could leave none.
    """
    kept = 0
    for folder in _newest_first(root, kind):
        whole = (folder / MARKER).exists()
        if whole and kept < keep:
            kept += 1
        elif whole or kept:
            shutil.rmtree(folder)


def starting_point(root: Path, report: Reporter, kind: Kind = TRAINER) -> Path | None:
    """The newest whole checkpoint, to continue from; says so, and names those that cannot be used.

    One that was left unfinished is removed, one that was altered is put aside.
    """
    start = newest_complete(root, kind)
    for folder in _newest_first(root, kind):
        if folder == start:
            break
        if (folder / MARKER).exists():
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
            text = _("{path} is not what was saved: its {what} differs. It is not used and was moved to {aside}.")
            what = "sha256" if kind.hashed else _("size")
            report.note(text.format(path=folder, what=what, aside=aside.name))
        else:
            shutil.rmtree(folder)
            report.note(_("{path} was left unfinished by an interruption and is not used.").format(path=folder))
    if start is not None:
        report.note(_("Continuing from step {step}.").format(step=kind.step(start)))
    return start


@contextlib.contextmanager
def full_disk_is_named(root: Path, needed: int) -> Iterator[None]:
    """Turn a failed write into ``OSError`` when the disk of ``root`` has less than ``needed`` bytes left.

    torch and safetensors raise errors of their own then, which say nothing of the disk.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(root).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from error
        raise


def marking_callback(keep: int) -> Any:
    """A ``TrainerCallback`` that marks each checkpoint the Trainer has saved, then removes those beyond ``keep``."""
    from transformers import TrainerCallback

    class _Mark(TrainerCallback):  # type: ignore[misc]  # transformers is not analysed: pyproject.toml
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  the Trainer's names
            root = Path(args.output_dir)
            mark_complete(root / f"checkpoint-{state.global_step}")
            tidy(root, keep)

    return _Mark()
