"""A folder shaped like Megatron-DeepSpeed where things are built in place, with an environment beside it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bootstrap import profiles
from bootstrap.facts import Facts, collect
from bootstrap.facts.builds import fused_kernels_folder, helpers_folder
from bootstrap.findings import Finding
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Profile, Source
from bootstrap.requirements import load
from bootstrap.workspace import Workspace

#: A suffix that no Python of a test has.
FOREIGN = ".cpython-36m-x86_64-linux-gnu.so"

MAKEFILE = """\
CXXFLAGS += -O0 -Wall -shared -std=c++11 -fPIC
CPPFLAGS += $(shell python3 -m pybind11 --includes)
LIBEXT = $(shell python3-config --extension-suffix)

all: helpers$(LIBEXT)

%$(LIBEXT): %.cpp
\t$(CXX) $(CXXFLAGS) $(CPPFLAGS) $< -o $@
"""
#: A module without pybind11's templates, which take seconds to compile.
HELPERS = """\
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "helpers", 0, -1, 0, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit_helpers(void) { return PyModule_Create(&module); }
"""


def pybind11_folder() -> Path:
    """The folder that holds a pybind11; the test is skipped without one."""
    named = os.environ.get("UCLLM_TEST_PYBIND11")
    spec = importlib.util.find_spec("pybind11")
    folder = Path(named) if named else Path(spec.origin).parents[1] if spec and spec.origin else None
    if folder is None or not (folder / "pybind11").is_dir():
        pytest.skip("no pybind11 here; UCLLM_TEST_PYBIND11 may name the site-packages of one")
    return folder


@dataclass
class Site:
    """A workspace with `.venv` and a checkout, a profile that names it, and another Python's python3-config."""

    workspace: Workspace
    profile: Profile
    foreign: Path
    said: list[str] = field(default_factory=list)

    @property
    def checkout(self) -> Path:
        """The checkout."""
        return self.workspace.root / "Megatron-DeepSpeed"

    @property
    def data(self) -> Path:
        """Where the helpers are."""
        return helpers_folder(self.checkout)

    @property
    def build(self) -> Path:
        """Where the fused kernels are built."""
        return fused_kernels_folder(self.checkout)

    def facts(self) -> Facts:
        """The facts of the environment and of what is built, really collected; the rest is as by default."""
        facts = collect.collect(self.profile, self.workspace, ("env", "builds"))
        assert not facts.errors
        return facts

    def check(self, requirement_id: str, facts: Facts | None = None) -> Finding:
        """What the check finds now."""
        finding = load([requirement_id])[0].check(self.profile, facts or self.facts())
        assert finding.evidence
        return finding

    def fix(self, requirement_id: str, facts: Facts | None = None) -> None:
        """Plan and do it."""
        journal = Journal(self.workspace)
        doing = Recorder(journal, journal.next_fix(), requirement_id, self.said.append)
        plan = load([requirement_id])[0].plan
        assert plan
        actions = plan(self.profile, facts or self.facts(), self.workspace)
        assert actions
        for action in actions:
            action.act(doing)

    def undo(self) -> None:
        """Put back what the last fix moved, if it moved anything."""
        for fix in fixes(Journal(self.workspace))[-1:]:
            undo(Journal(self.workspace), fix)

    def make(self, folder: Path | None = None) -> None:
        """What `pretrain_gpt.py` does at every start, in an activated environment."""
        path = f"{self.workspace.env / 'bin'}:{os.environ['PATH']}"
        subprocess.run(["make", "-C", folder or self.data], check=True, env={**os.environ, "PATH": path})


def make_site(root: Path, monkeypatch: pytest.MonkeyPatch, *, source: Source | None = None) -> Site:
    """A site below ``root``, with the other Python's python3-config first on ``PATH``; no checkout yet."""
    foreign = root / "foreign" / "bin"
    foreign.mkdir(parents=True)
    (foreign / "python3-config").write_text(f"#!/bin/sh\necho {FOREIGN}\n", encoding="utf-8")
    (foreign / "python3-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{foreign}:{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(root / "extensions"))
    workspace = Workspace(root / "work space")
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-I", "-m", "venv", "--without-pip", workspace.env], check=True)
    source = source or Source("/nowhere", "Megatron-DeepSpeed", "v1", "a" * 40)
    profile = dataclasses.replace(profiles.load("cpu"), sources={"megatron": source})
    return Site(workspace, profile, foreign)


def add_pybind11(site: Site) -> None:
    """Put a pybind11 on the environment's path."""
    packages = next((site.workspace.env / "lib").glob("python*/site-packages"))
    (packages / "pybind11-of-the-tests.pth").write_text(f"{pybind11_folder()}\n", encoding="utf-8")
