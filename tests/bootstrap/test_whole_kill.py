"""`kill -9` of a whole setup at random moments, then the same command: the same files as an undisturbed setup."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Tiny
from tests.bootstrap.whole import setup

#: Not part of what setup makes: what it wrote on the way.
_ON_THE_WAY = ("journal.jsonl", "logs", "cache", "backups", "lock", "__pycache__", ".git", "history")
TIMES = 30


def tree(workspace: Path, made: Path) -> dict[str, tuple[int, str]]:
    """Every file below ``workspace``: path to mode and hash, or link. Compiled files count by their symbols."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        name = path.relative_to(workspace)
        if path.is_dir() and not path.is_symlink():
            continue
        if any(part in _ON_THE_WAY for part in name.parts) or path.suffix == ".pyc":
            continue
        if path.is_symlink():
            found[str(name)] = (0, str(path.readlink()).replace(str(workspace), "@"))
        else:
            found[str(name)] = (path.stat().st_mode & 0o777, hashlib.sha256(_body(path, workspace, made)).hexdigest())
    return found


def _body(path: Path, workspace: Path, made: Path) -> bytes:
    body = path.read_bytes()
    if body.startswith(b"\x7fELF") and ".cpython-" in path.name:
        names = subprocess.run(["nm", "--dynamic", "--format=posix", str(path)], capture_output=True, check=True).stdout
        return b"\n".join(line.rsplit(b" ", 2)[0] for line in names.splitlines())
    body = body.replace(str(workspace).encode(), b"@")
    for root in (workspace.parent, made):  # where caches and profile lie, and the channel
        body = body.replace(str(root).encode(), b"@@")
    body = re.sub(rb"^#!@/\.venv/bin/python[0-9.]*", b"#!@/.venv/bin/python", body)
    if path.name == "RECORD":  # with the hashes of what holds the workspace's path, and of what was compiled
        body = re.sub(rb"((?:\.\./bin/|\S*\.so|\S*direct_url\.json)[^,]*),.*", rb"\1", body)
    if path.name == "direct_url.json":  # of a wheel that was compiled, whose archive holds the time
        body = re.sub(rb"[0-9a-f]{64}", b"", body)
    if path.parent.name == "conda-meta" and path.suffix == ".json":
        record = json.loads(body)
        for item in record.get("paths_data", {}).get("paths", ()):
            for key in ("sha256_in_prefix", "size_in_bytes"):  # of files that hold the workspace's path
                item.pop(key, None)
        body = json.dumps(record, sort_keys=True).encode()
    return body


@pytest.fixture
def fresh(tmp_path: Path, step_0: Path) -> Tiny:
    """The profile, without any cache and without a workspace."""
    for name in ("profile", "git", "wheels"):
        shutil.copytree(step_0 / name, tmp_path / name, symlinks=True)
    toml = tmp_path / "profile" / "profile.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace(str(step_0 / "git"), str(tmp_path / "git")))
    return Tiny(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TIMES))
def test_killed_at_a_random_moment(fresh: Tiny, step_0: Path, number: int) -> None:
    whole = json.loads((step_0 / "said.json").read_text(encoding="utf-8"))["seconds"]
    child = fresh.start("setup", "--profile", str(fresh.root / "profile"), "--yes", "--json")
    time.sleep(whole * random.Random(number).random())
    if number % 2:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.communicate()
    again = setup(fresh)
    assert again.code == 0, again.out + again.err
    expected, found = tree(step_0 / "ws", step_0), tree(fresh.workspace, step_0)
    differing = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
    assert differing == set()
    for name in ("Megatron-DeepSpeed", "apex", "llm-jp-sft"):
        argv = ["git", "-C", str(fresh.workspace / name), "status", "--porcelain", "--ignored=no"]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
    leftovers = [path for path in fresh.workspace.rglob("*") if path.name.endswith((".part", ".ucllm-part"))]
    assert [path for path in leftovers if ".ucllm/backups" not in str(path)] == []
    assert [*(fresh.root / "home" / ".cache" / "ucllm" / "wheels").glob("*.part")] == []
