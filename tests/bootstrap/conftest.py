"""The real command line on a workspace of its own, with a profile of tiny wheels and no network."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bootstrap.wheels import write_tiny
from tests.conftest import cli_environment

_BOOT = """
import pathlib
import bootstrap.profiles as profiles
profiles.locks_dir = lambda: pathlib.Path({locks!r})
{patch}
from bootstrap.cli import main
main()
"""


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as the one JSON object it must be."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    @property
    def statuses(self) -> dict[str, str]:
        """Finding id to status."""
        return {item["id"]: item["status"] for item in self.json["data"]["findings"]}


@dataclass
class Tiny:
    """A folder with locks, wheels, home and workspace, and the command line on them."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    #: Code that a child runs before the command line, to break something inside it.
    patch: str = ""

    @property
    def workspace(self) -> Path:
        return self.root / "ws"

    @property
    def env(self) -> Path:
        return self.workspace / ".venv"

    @property
    def site(self) -> Path:
        return next(self.env.glob("lib/python3*/site-packages"))

    @property
    def lock(self) -> Path:
        return self.root / "locks" / "tiny"

    @property
    def backups(self) -> list[str]:
        return sorted(path.name for path in (self.workspace / ".ucllm" / "backups").glob("*"))

    def journal(self) -> list[dict[str, Any]]:
        text = (self.workspace / ".ucllm" / "journal.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def start(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        """Start the command line, in a session of its own so that a test may kill its whole group."""
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        wheels = f"{self.root / 'wheels'} {self.root / 'default-wheels'}"
        env = {
            **cli_environment(home),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": wheels,
            "PIP_NO_COMPILE": "1",
            **self.variables,
        }
        code = _BOOT.format(locks=str(self.root / "locks"), patch=self.patch)
        where = () if args[0] == "mirror" else ("--workspace", str(self.workspace))
        argv = [sys.executable, "-c", code, *args, *where]
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "start_new_session": True,
            **more,
        }
        return subprocess.Popen(argv, env=env, cwd=home, text=True, **options)

    def __call__(self, *args: str) -> Outcome:
        """Run a command to its end."""
        child = self.start(*args)
        try:
            out, err = child.communicate(timeout=240)
        finally:
            child.kill()
        return Outcome(child.returncode, out, err)

    def setup(self, *args: str) -> Outcome:
        return self("setup", "--profile", "tiny", "--json", *args)

    def doctor(self, *args: str) -> Outcome:
        return self("doctor", "--json", *args)


def content(folder: Path, *, skip: tuple[str, ...] = ("__pycache__",)) -> dict[str, str]:
    """Every file under ``folder``: path to sha256, or to a link's target. The folder's own path counts as ``@``.

    RECORD lists commands with their hashes, and those hold the folder's path: these hashes are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if any(part in skip for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            body = path.read_bytes().replace(str(folder).encode(), b"@")
            # venv calls pip by its Python's full name, we by its short one: two links to the same.
            body = re.sub(rb"^#!@/bin/python[0-9.]*", b"#!@/bin/python", body)
            if path.name == "RECORD":
                body = re.sub(rb"(\.\./bin/[^,]*),.*", rb"\1", body)
            found[name] = hashlib.sha256(body).hexdigest()
    return found


def stamps(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Every file and folder: modification time and size."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_symlink()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


@contextlib.contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder, not made yet, that all workers of this test run share; only one of them works in the ``with``."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with one_worker_at_a_time(base.parent / f"{name}.lock"):
        yield root / name


@contextlib.contextmanager
def one_worker_at_a_time(file: Path) -> Iterator[None]:
    """Hold ``file`` against the other workers of this test run."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], Tiny], profile: str) -> Path:
    """A folder whose workspace `setup` finished, made once for all workers: making a venv takes seconds."""
    with shared_folder(factory, name) as root:
        if not root.exists():
            root.mkdir()
            outcome = write(root)("setup", "--profile", profile, "--json")
            assert outcome.code == 0, outcome.out + outcome.err
            shutil.rmtree(root / "ws" / ".ucllm" / "cache")
    return root


def _written(root: Path) -> Tiny:
    write_tiny(root)
    return Tiny(root)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `setup` makes of profile `tiny`."""
    return made_once(tmp_path_factory, "tiny-template", _written, "tiny")


@pytest.fixture
def empty(tmp_path: Path) -> Tiny:
    """The tiny profiles and their wheels; no workspace yet."""
    return _written(tmp_path)


@pytest.fixture
def healthy(empty: Tiny, template: Path) -> Tiny:
    """A workspace in which everything is as profile `tiny` says."""
    shutil.copytree(template / "ws", empty.workspace, symlinks=True)
    relocate(template / "ws", empty)
    return empty


def relocate(workspace: Path, copy: Tiny) -> None:
    """A venv says where it is in its commands: make the copy of ``workspace`` what setup would have made here."""
    there, here = str(workspace).encode(), str(copy.workspace).encode()
    for path in (*(copy.env / "bin").iterdir(), copy.env / "pyvenv.cfg"):
        if not path.is_symlink():
            path.write_bytes(path.read_bytes().replace(there, here))


@pytest.fixture(scope="session")
def step_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of Step 0 made once for all workers: the profile of stand-ins, its channel, and its workspace; read only."""
    from tests.bootstrap import whole

    with shared_folder(tmp_path_factory, "step-0") as root:
        if not (root / "said.json").exists():
            shutil.rmtree(root, ignore_errors=True)
            whole.finish(root)
    return root
