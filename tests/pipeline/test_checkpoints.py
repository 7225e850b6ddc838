"""A checkpoint counts only when its marker says what it holds."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import checkpoints
from pipeline.events import Reporter


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def start(root: Path) -> tuple[Path | None, list[str]]:
    report = Notes()
    return checkpoints.starting_point(root, cast("Reporter", report)), report.notes


def saved(root: Path, step: int, *, marked: bool = True) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step % 256]) * 100)
    (folder / "deep" / "state.json").write_text(str(step), encoding="utf-8")
    if marked:
        checkpoints.mark_complete(folder)
    return folder


def test_the_newest_whole_one_is_taken_by_step_and_not_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 9)
    newest = saved(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.newest_complete(tmp_path) == newest
    assert start(tmp_path) == (newest, ["Continuing from step 10."])


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoints.newest_complete(tmp_path / "none") is None
    assert start(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "more", "marker"])
def test_other_content_than_the_marker_says_does_not_count(tmp_path: Path, damage: str) -> None:
    old, new = saved(tmp_path, 1), saved(tmp_path, 2)
    weights = new / "model.safetensors"
    if damage == "altered":
        weights.write_bytes(bytes([3]) * 100)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:50])
    elif damage == "missing":
        weights.unlink()
    elif damage == "more":
        (new / "deep" / "other").touch()
    else:
        (new / checkpoints.MARKER).write_text("{}", encoding="utf-8")
    found, notes = start(tmp_path)
    assert found == old
    assert "sha256" in notes[0]
    assert not new.exists()
    assert (tmp_path / "damaged-checkpoint-2").is_dir(), "put aside, not thrown away"


def test_an_unfinished_one_is_removed_and_named(tmp_path: Path) -> None:
    old, half = saved(tmp_path, 1), saved(tmp_path, 2, marked=False)
    found, notes = start(tmp_path)
    assert found == old
    assert notes[0].startswith(f"{half} was left unfinished")
    assert not half.exists()


def test_tidying_keeps_the_newest_marked_ones(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        saved(tmp_path, step)
    saved(tmp_path, 7, marked=False)
    saved(tmp_path, 11, marked=False)  # another process may be writing it: Megatron does, while we tidy
    checkpoints.tidy(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]


def test_a_write_that_fails_on_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests' own Python has no safetensors.
    monkeypatch.setitem(sys.modules, "safetensors", cast("Any", SimpleNamespace(SafetensorError=KeyError)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=10))

    def write(needed: int) -> None:
        with checkpoints.full_disk_is_named(tmp_path, needed):
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(OSError, match="No space") as caught:
        write(11)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="unexpected pos"):
        write(10)
