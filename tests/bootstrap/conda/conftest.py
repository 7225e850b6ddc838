"""The local conda channel, and workspaces made of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from bootstrap import conda, profiles
from tests.bootstrap import conda_channel
from tests.bootstrap.conda_channel import SUBDIR
from tests.bootstrap.conda_workspace import setup, write
from tests.bootstrap.conftest import Tiny, shared_folder


@pytest.fixture(scope="session")
def conda_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The channel and the installer, packed once for all workers."""
    with shared_folder(tmp_path_factory, "conda") as root:
        if not (root / "channel" / SUBDIR / "repodata.json").exists():
            conda_channel.write_channel(root / "channel")
            conda_channel.write_installer(root)
    return root


@pytest.fixture(scope="session")
def conda_finished(tmp_path_factory: pytest.TempPathFactory, conda_made: Path) -> Path:
    """A folder whose workspace setup finished, made once for all workers; read only."""
    with shared_folder(tmp_path_factory, "conda-finished") as root:
        if not root.exists():
            root.mkdir()
            outcome = setup(write(root, conda_made))
            assert outcome.code == 0, outcome.out + outcome.err
            (root / "said.txt").write_text(outcome.err, encoding="utf-8")
    return root


@pytest.fixture
def conda_fresh(tmp_path: Path, conda_made: Path) -> Tiny:
    """The profile and its channel; no workspace yet."""
    return write(tmp_path, conda_made)


@pytest.fixture
def conda_healthy(conda_fresh: Tiny, conda_finished: Path) -> Tiny:
    """A workspace in which everything is as the profile says: a copy, which says where it lies now."""
    shutil.copytree(conda_finished / "ws", conda_fresh.workspace, symlinks=True)
    there, here = str(conda_finished).encode(), str(conda_fresh.root).encode()
    for folder in (conda_fresh.workspace, conda_fresh.root / "channel"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.suffix not in (".bz2", ".pyc"):
                body = path.read_bytes()
                if there in body:
                    path.write_bytes(body.replace(there, here))
    for path in (conda_fresh.env / "conda-meta").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for item in record["paths_data"]["paths"]:
            if item.get("file_mode") == "text":
                item["sha256_in_prefix"] = hashlib.sha256((conda_fresh.env / item["_path"]).read_bytes()).hexdigest()
        path.write_text(json.dumps(record), encoding="utf-8")
    solution = conda_fresh.workspace / ".ucllm" / "conda-solution.json"
    data = json.loads(solution.read_text(encoding="utf-8"))
    data["inputs"] = conda.inputs(profiles.load(str(conda_fresh.root / "profile")))
    solution.write_text(json.dumps(data), encoding="utf-8")
    return conda_fresh
