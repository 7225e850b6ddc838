"""A workspace with an environment, a checkout and what is built in it, as `ucllm setup` makes it; then broken."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootstrap.facts.builds import fused_kernels_folder, helpers_folder
from tests.bootstrap.conftest import Tiny, made_once, relocate
from tests.bootstrap.megatron import FOREIGN, HELPERS, MAKEFILE
from tests.bootstrap.wheels import build, pin, write_tiny

#: In the guide's order; what a machine without a GPU can show of it.
REQUIREMENTS = (
    "machine.tmp-exec", "machine.open-files", "machine.locale", "machine.port", "machine.interfaces",
    "machine.scheduler",
    "env.python", "env.variables", "env.pip", "env.shadowing", "env.packages", "env.dependencies",
    "source.megatron", "build.helpers", "build.fused-kernels", "build.torch-extensions",
    "credentials.huggingface", "credentials.wandb",
)  # fmt: skip


@dataclass
class Yard(Tiny):
    """A :class:`Tiny` with a checkout: profile ``yard``."""

    @property
    def checkout(self) -> Path:
        return self.workspace / "Megatron-DeepSpeed"

    @property
    def data(self) -> Path:
        return helpers_folder(self.checkout)

    @property
    def build(self) -> Path:
        return fused_kernels_folder(self.checkout)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def extensions(self) -> Path:
        return self.root / "extensions"

    def git(self, *args: str) -> str:
        """git in the checkout."""
        return git(self.checkout, *args)

    def problems(self) -> Mapping[str, str]:
        """What is neither fine nor skipped."""
        return {key: value for key, value in self.doctor().statuses.items() if value not in ("ok", "skipped")}


def git(folder: Path, *args: str) -> str:
    """git with a name of its own and nobody's settings."""
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_DATE": "2024-02-05T00:00:00Z",
        "GIT_COMMITTER_DATE": "2024-02-05T00:00:00Z",
    }
    argv = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *args]
    return subprocess.run(argv, check=True, env=env, capture_output=True, text=True).stdout.strip()


def write_origin(root: Path) -> Path:
    """A repository to clone from, shaped like Megatron-DeepSpeed: tag ``v1``, and a later commit."""
    origin = root / "origin"
    if not origin.exists():
        (origin / "megatron" / "data").mkdir(parents=True)
        (origin / "megatron" / "data" / "Makefile").write_text(MAKEFILE, encoding="utf-8")
        (origin / "megatron" / "data" / "helpers.cpp").write_text(HELPERS, encoding="utf-8")
        (origin / "megatron" / "fused_kernels").mkdir()
        (origin / "megatron" / "fused_kernels" / "__init__.py").touch()
        git(origin, "init", "-q", "-b", "main")
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", "pinned")
        git(origin, "tag", "v1")
        (origin / "later").touch()
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", "later")
    return origin


def _write(root: Path) -> None:
    """The wheels, the repository to clone from, and profile ``yard``."""
    write_tiny(root)
    wheel = build(root / "wheels", "pybind11", "2.11.1", code="\n\ndef get_include() -> str:\n    return '/nowhere'\n")
    origin = write_origin(root)
    text = (root / "locks" / "tiny" / "profile.toml").read_text(encoding="utf-8")
    ids = ", ".join(f'"{item}"' for item in REQUIREMENTS)
    text = text.replace('requirements = ["env.python", "env.packages"]', f"requirements = [{ids}]")
    commit = git(origin, "rev-parse", "v1")
    text += f'\n[sources.megatron]\nurl = "{origin}"\nfolder = "Megatron-DeepSpeed"\ntag = "v1"\ncommit = "{commit}"\n'
    yard = root / "locks" / "yard"
    shutil.copytree(root / "locks" / "tiny", yard, dirs_exist_ok=True)
    (yard / "profile.toml").write_text(text, encoding="utf-8")
    with (yard / "requirements.lock").open("a", encoding="utf-8") as stream:
        stream.write(pin(wheel))


def _open(root: Path) -> Yard:
    _write(root)
    foreign = root / "foreign"
    foreign.mkdir(exist_ok=True)
    # Another Python's, first on PATH: the trap of the guide.
    (foreign / "python3-config").write_text(f"#!/bin/sh\necho {FOREIGN}\n", encoding="utf-8")
    (foreign / "python3-config").chmod(0o755)
    yard = Yard(root)
    yard.variables |= {
        "PATH": f"{foreign}:{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(yard.extensions),
        "LC_ALL": "C.UTF-8",
        # `make test` moves it into the checkout.
        "HF_HOME": str(root / "home" / ".cache" / "huggingface"),
        # The test runner's own way to this checkout; the tool that is tested is installed.
        "PYTHONPATH": "",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    return yard


@pytest.fixture(scope="session")
def yard_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `setup` makes of profile ``yard``."""
    return made_once(tmp_path_factory, "yard-template", _open, "yard")


@pytest.fixture
def yard(tmp_path: Path, yard_template: Path) -> Yard:
    """A workspace in which everything is as profile ``yard`` says."""
    made = _open(tmp_path)
    shutil.copytree(yard_template / "ws", made.workspace, symlinks=True)
    relocate(yard_template / "ws", made)
    # The journal of the template's setup names files that are not here.
    (made.workspace / ".ucllm" / "journal.jsonl").unlink()
    return made
