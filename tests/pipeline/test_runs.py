"""Manifests: what makes a stage stale, with the reason, and that nothing half-written is ever believed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import runs
from pipeline.errors import UcllmError
from tests.pipeline.orchestration import Bench, bench

__all__ = ["bench"]  # a fixture


@pytest.fixture
def done(bench: Bench) -> Bench:
    """A bench whose stage has run."""
    bench.train(bench.plan("", steps=300, nested={"a": 1, "b": 2}))
    return bench


def _reason(bench: Bench, **changes: Any) -> str:
    plan = bench.plan("", steps=300, nested={"a": 1, "b": 2})
    return runs.examine(dataclasses.replace(plan, **changes)).reason


def _edit(bench: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    path = bench.home / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_up_to_date(done: Bench) -> None:
    assert _reason(done) == ""
    done.source.touch()
    assert _reason(done) == "", "another time, the same content"


@pytest.mark.parametrize("kept", [0, 0.001, 0.5, 0.99])
def test_a_truncated_manifest_is_damaged(done: Bench, kept: float) -> None:
    path = done.home / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert _reason(done) == "its manifest is damaged"
    assert done.train(done.plan("", steps=300)).state == "ran"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(manifest_version=0),
        lambda manifest: manifest.update(manifest_version=2),
        lambda manifest: manifest.update(status="running"),
        lambda manifest: manifest.pop("fingerprint"),
        lambda manifest: manifest.pop("metrics"),
        lambda manifest: manifest.update(inputs=None),
        lambda manifest: manifest.update(outputs=[]),
        lambda manifest: manifest.update(inputs={"text": "x"}),
        lambda manifest: manifest["outputs"]["text"].pop("sha256"),
        lambda manifest: manifest["outputs"]["text"].update(files=[]),
        lambda manifest: manifest["outputs"]["text"]["files"].update({"": {"size": 3}}),
    ],
)
def test_a_manifest_of_another_form_is_not_believed(done: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    _edit(done, change)
    assert _reason(done) == "its manifest is damaged"


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"'])
def test_json_that_is_no_manifest(done: Bench, text: str) -> None:
    (done.home / "manifest.json").write_text(text, encoding="utf-8")
    assert _reason(done) == "its manifest is damaged"


def test_an_altered_output(done: Bench) -> None:
    output = done.home / "out.txt"
    stamp = output.stat().st_mtime_ns
    output.write_text("xyz", encoding="utf-8")  # as long as before
    os.utime(output, ns=(stamp + 1, stamp + 1))
    assert _reason(done) == f"its output was altered: {output}"
    output.unlink()
    assert _reason(done) == f"its output is missing: {output}"


@pytest.mark.parametrize("change", ["add", "remove", "alter"])
def test_an_altered_folder(done: Bench, change: str) -> None:
    folder = done.home / "folder"
    if change == "add":
        (folder / "more.txt").write_text("", encoding="utf-8")
    elif change == "remove":
        (folder / "copy.txt").unlink()
    else:
        (folder / "copy.txt").write_text("longer than before", encoding="utf-8")
    assert _reason(done) == f"its output was altered: {folder}"


def test_a_changed_input(done: Bench) -> None:
    done.source.write_text("changed", encoding="utf-8")
    assert _reason(done) == f"its input changed: {done.source}"
    assert done.train(done.plan("", steps=300, nested={"a": 1, "b": 2})).state == "ran"
    assert _reason(done) == ""


def test_the_same_input_elsewhere_is_the_same(done: Bench) -> None:
    elsewhere = done.root / "elsewhere.txt"
    elsewhere.write_text("abc", encoding="utf-8")
    assert _reason(done, inputs={"text": elsewhere}) == ""


def test_changed_settings_are_named(done: Bench) -> None:
    config = {"how": "", "steps": 400, "nested": {"a": 1, "c": 3}}
    assert _reason(done, config=config) == "changed: nested.b 2 → None, nested.c None → 3, steps 300 → 400"


def test_no_more_than_six_settings_are_named() -> None:
    before, after = {f"k{number}": 1 for number in range(9)}, {f"k{number}": 2 for number in range(9)}
    assert len(runs.changed_settings(before, after)) == 6


def test_another_format_or_stage(done: Bench) -> None:
    assert _reason(done, format=2) == "it was made by another version of this stage"
    assert _reason(done, stage="corpus") == "the folder holds another stage"


def test_a_missing_input_is_an_error_that_names_it(done: Bench) -> None:
    done.source.unlink()
    with pytest.raises(UcllmError) as caught:
        _reason(done)
    (problem,) = caught.value.problems
    assert (problem.code, problem.why) == ("input.missing", "No such file or directory")
    assert str(done.source) in problem.what


def test_only_what_changed_is_read_again(done: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = runs.sha256_file

    def counting(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(runs, "sha256_file", counting)
    assert _reason(done) == ""
    assert read == []
    (done.home / "folder" / "copy.txt").touch()
    assert _reason(done) == ""
    assert read == [done.home / "folder" / "copy.txt"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x" / "file"
    runs.write_text_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_text_atomically(path, "new")
    assert [(item.name, item.read_text(encoding="utf-8")) for item in path.parent.iterdir()] == [("file", "old")]
