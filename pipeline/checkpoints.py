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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.i18n import _
from pipeline.runs import describe, write_text_atomically

if TYPE_CHECKING:
    from pipeline.events import Reporter

MARKER = "complete.json"


def _content(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a checkpoint but its marker."""
    files = describe(folder)["files"]
    return {name: entry["sha256"] for name, entry in sorted(files.items()) if name != MARKER}


def mark_complete(folder: Path) -> None:
    """Declare the checkpoint in ``folder`` whole. The last thing to do to it."""
    write_text_atomically(folder / MARKER, json.dumps(_content(folder), indent=1) + "\n")


def is_complete(folder: Path) -> bool:
    """Whether the checkpoint is exactly what its marker says."""
    try:
        named = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return bool(named) and named == _content(folder)
    except (OSError, ValueError):
        return False


def _newest_first(root: Path) -> list[Path]:
    """The checkpoint folders in ``root`` (``checkpoint-STEP``, the Trainer's names), the highest step first."""
    found = [path for path in root.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def newest_complete(root: Path) -> Path | None:
    """The newest whole checkpoint in ``root``; ``None`` when there is none, or no ``root``."""
    return next((folder for folder in _newest_first(root) if is_complete(folder)), None)


def tidy(root: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest whole checkpoints.

    The Trainer's own limit would remove an old one before the new one is marked, and so could leave none.
    """
    kept = 0
    for folder in _newest_first(root):
        if kept < keep and (folder / MARKER).exists():
            kept += 1
        else:
            shutil.rmtree(folder)


def starting_point(root: Path, report: Reporter) -> Path | None:
    """The newest whole checkpoint, to continue from; says so, and names those that cannot be used.

    One that was left unfinished is removed, one that was altered is put aside.
    """
    start = newest_complete(root)
    for folder in _newest_first(root):
        if folder == start:
            break
        if (folder / MARKER).exists():
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
            text = _("{path} is not what was saved: its sha256 differs. It is not used and was moved to {aside}.")
            report.note(text.format(path=folder, aside=aside.name))
        else:
            shutil.rmtree(folder)
            report.note(_("{path} was left unfinished by an interruption and is not used.").format(path=folder))
    if start is not None:
        report.note(_("Continuing from step {step}.").format(step=start.name.rpartition("-")[2]))
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
