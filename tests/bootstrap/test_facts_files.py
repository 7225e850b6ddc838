"""Facts as files: where they may be written, and what is no facts file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from bootstrap.facts import FACTS_VERSION, Facts
from bootstrap.facts.files import load, require_place, save
from pipeline.errors import UcllmError
from tests.bootstrap.conftest import Tiny


def _device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


def _link_to_a_file(path: Path) -> None:
    (path.parent / "elsewhere").write_text("of others", encoding="utf-8")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("make", [_device, os.mkfifo, _dangling_link, _link_to_a_file])
def test_only_a_regular_file_is_replaced(healthy: Tiny, make: object) -> None:
    assert callable(make)
    path = healthy.root / "facts.json"
    make(path)
    before = path.lstat()
    seen = healthy.doctor("--save-facts", str(path))
    assert seen.code == 2
    (error,) = seen.json["errors"]
    assert error["code"] == "facts.not-writable"
    assert "It is not a regular file." in error["message"]
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list(healthy.root.glob(".facts.json*")) == []


def test_a_folder_that_is_missing_is_not_made(healthy: Tiny) -> None:
    path = healthy.root / "no such folder" / "facts.json"
    seen = healthy.doctor("--save-facts", str(path))
    assert seen.code == 2
    (error,) = seen.json["errors"]
    assert "There is no folder" in error["message"]
    assert error["hint"] == f"Make the folder first: `mkdir -p '{path.parent}'`"
    assert not path.parent.exists()


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UcllmError, match="There is no folder"):
        require_place(tmp_path / "file" / "facts.json")


def test_a_regular_file_is_replaced_and_a_new_one_made(tmp_path: Path) -> None:
    facts = Facts(workspace="/w", profile="cpu")
    for path in (tmp_path / "new.json", tmp_path / "old.json"):
        if path.name == "old.json":
            path.write_text("old", encoding="utf-8")
        save(facts, path)
        assert load(path) == facts


def test_a_name_that_is_no_text_can_be_saved(tmp_path: Path) -> None:
    save(Facts(workspace=os.fsdecode(b"/w\xff"), profile="cpu"), tmp_path / "facts.json")
    assert load(tmp_path / "facts.json").workspace == "/w?"


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        '{"workspace": ' + "[" * 200_000,
        json.dumps({"workspace": "\udcff", "facts_version": FACTS_VERSION}),
        json.dumps({"workspace": "/w", "facts_version": FACTS_VERSION, "\ud800": 1}),
        json.dumps({"workspace": "/w", "facts_version": FACTS_VERSION, "machine": {"libc": "\udfff"}}),
        json.dumps({"workspace": "/w", "facts_version": FACTS_VERSION, "took_ms": {"env": 10**400}}),
    ],
    ids=["deep", "deeper", "half a character", "in a key", "in a section", "a large number"],
)
def test_what_no_facts_can_be_is_refused(healthy: Tiny, content: str) -> None:
    file = healthy.root / "facts.json"
    file.write_text(content, encoding="utf-8")
    for as_json in ([], ["--json"]):
        seen = healthy("doctor", "--profile", "tiny", "--facts", str(file), *as_json)
        assert seen.code == 2
        assert "Traceback" not in seen.err
    assert [item["code"] for item in seen.json["errors"]] == ["facts.unreadable"]
