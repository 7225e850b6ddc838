"""Compilers, nvcc and build tools: found on this machine and in made-up folders, and judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bootstrap import profiles
from bootstrap.facts import Dist, EnvFacts, Facts, MachineFacts, Program, ToolsFacts, Torch, tools
from bootstrap.facts.collect import TIMEOUTS_S, Request
from bootstrap.findings import Finding
from bootstrap.requirements import load
from bootstrap.workspace import Workspace

ENV = EnvFacts(
    "/w/.venv",
    "ready",
    version="3.9.18",
    include="/w/.venv/include/python3.9",
    has_headers=True,
    dists={"ninja": Dist("1.11.1")},
    torch=Torch("2.2.0", "11.8"),
)
NVCC = Program("/w/.venv/bin/nvcc", "11.8.89")
FOREIGN = Program("/usr/local/cuda-12.2/bin/nvcc", "12.2.140")
HEALTHY = Facts(
    "/w",
    tools=ToolsFacts(
        path=("/w/.venv/bin", "/usr/bin"),
        programs={
            "g++": Program("/usr/bin/g++", "11.4.0"),
            "make": Program("/usr/bin/make", "4.3"),
            "git": Program("/usr/bin/git", "2.39.5"),
            "ninja": Program("/w/.venv/bin/ninja", "1.11.1"),
            "nvcc": NVCC,
        },
        headers={"libaio.h": "/usr/include/libaio.h"},
        libraries={"libaio": "/usr/lib/libaio.so"},
        looked_in=("/usr/include", "/usr/lib"),
    ),
    env=ENV,
    collected=tuple(TIMEOUTS_S),
)
CHECKS = (
    "machine.compiler",
    "machine.python-headers",
    "machine.build-tools",
    "machine.libaio",
    "env.nvcc",
    "env.cuda-match",
)


def _check(requirement: str, facts: Facts, profile: str = "gcp-2024.02") -> Finding:
    finding = load([requirement])[0].check(profiles.load(profile), facts)
    assert finding.evidence
    return finding


def _tools(**values: Any) -> Facts:
    return dataclasses.replace(HEALTHY, tools=dataclasses.replace(HEALTHY.tools, **values))


def _program(name: str, program: Program | None) -> Facts:
    programs = {key: value for key, value in HEALTHY.tools.programs.items() if key != name}
    return _tools(programs={**programs, **({name: program} if program else {})})


def _env(**values: Any) -> Facts:
    return dataclasses.replace(HEALTHY, env=dataclasses.replace(ENV, **values))


def _cuda(nvcc: str, torch: str) -> Facts:
    return dataclasses.replace(_program("nvcc", Program(NVCC.path, f"{nvcc}.1")), env=_env(torch=Torch("2", torch)).env)


def _active(facts: Facts) -> Facts:
    return dataclasses.replace(facts, machine=MachineFacts(variables={"CONDA_PREFIX": "/w/.venv"}))


@pytest.mark.parametrize("requirement", CHECKS)
def test_a_healthy_machine(requirement: str) -> None:
    assert _check(requirement, HEALTHY).status == "ok"


@pytest.mark.parametrize(
    ("requirement", "facts", "status", "words"),
    [
        ("machine.compiler", _program("g++", None), "fail", "no C++ compiler"),
        ("machine.compiler", _program("g++", Program("/usr/bin/g++", "13.2.0")), "fail", "too new"),
        ("machine.compiler", _program("g++", Program("/usr/bin/g++", "")), "unknown", "version"),
        ("machine.python-headers", _env(has_headers=False), "fail", "headers of Python 3.9"),
        ("machine.python-headers", _env(has_headers=None), "unknown", "cannot be told"),
        ("machine.build-tools", _program("make", None), "fail", "make"),
        ("machine.build-tools", _program("ninja", None), "fail", "ninja"),
        ("machine.libaio", _tools(headers={"libaio.h": ""}), "fail", "libaio.h"),
        ("machine.libaio", _tools(libraries={"libaio": ""}), "fail", "libaio.so"),
        ("machine.libaio", _tools(headers={}, libraries={}), "unknown", "libaio"),
        ("env.nvcc", _program("nvcc", None), "fail", "no nvcc"),
        ("env.nvcc", _program("nvcc", FOREIGN), "fail", "no nvcc"),
        ("env.nvcc", _program("nvcc", Program(NVCC.path, "")), "unknown", "version"),
        ("env.nvcc", _program("nvcc", Program(NVCC.path, "11.7.99")), "fail", "11.7.99"),
        ("env.nvcc", _tools(user_nvcc=FOREIGN), "warn", "12.2.140"),
        ("env.nvcc", _tools(cuda_home=FOREIGN), "warn", "12.2.140"),
        ("env.nvcc", _active(_tools(user_nvcc=FOREIGN)), "fail", "12.2.140"),
        ("env.nvcc", _tools(user_nvcc=Program("/usr/local/cuda-11.8/bin/nvcc", "11.8.89")), "ok", "11.8.89"),
        ("env.cuda-match", _program("nvcc", FOREIGN), "fail", "nothing can be compiled"),
        ("env.cuda-match", _env(torch=Torch("2.2.0", "")), "fail", "nothing can be compiled"),
        ("env.cuda-match", _env(torch=Torch("2.2.0", "11.7")), "warn", "apex refuses"),
        ("env.cuda-match", _cuda("12.3", "12.1"), "warn", "apex refuses"),
        ("env.cuda-match", _cuda("12.4", "12.1"), "fail", "nothing can be compiled"),
        ("env.cuda-match", _env(torch=None), "unknown", "could not be compared"),
    ],
)
def test_what_is_wrong_is_said(requirement: str, facts: Facts, status: str, words: str) -> None:
    found = _check(requirement, facts)
    assert (found.status, words in found.summary) == (status, True), found.summary


@pytest.mark.parametrize("requirement", ["machine.libaio", "env.nvcc", "env.cuda-match"])
def test_a_profile_without_cuda_asks_for_none_of_it(requirement: str) -> None:
    assert _check(requirement, HEALTHY, "cpu").status == "skipped"


def test_the_compiler_of_a_profile_without_nvcc_may_be_any() -> None:
    assert _check("machine.compiler", _program("g++", Program("/usr/bin/g++", "13.2.0")), "megatron-cpu").status == "ok"


def _fake(folder: Path, name: str, says: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_programs_are_found_as_a_build_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "ws")
    line = "Cuda compilation tools, release {0}, V{0}.89"
    _fake(workspace.env / "bin", "nvcc", line.format("11.8"))
    _fake(tmp_path / "cuda" / "bin", "nvcc", line.format("12.2"))
    _fake(tmp_path / "bin", "g++-11", "11.4.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'cuda' / 'bin'}:{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CXX", "g++-11")
    found = tools.collect(Request(profiles.load("cpu"), workspace))
    assert found.programs["nvcc"] == Program(str(workspace.env / "bin" / "nvcc"), "11.8.89")
    assert found.user_nvcc == found.cuda_home == Program(str(tmp_path / "cuda" / "bin" / "nvcc"), "12.2.89")
    assert found.programs["g++"] == Program(str(tmp_path / "bin" / "g++-11"), "11.4.0")
    assert found.path[0] == str(workspace.env / "bin")


@pytest.mark.parametrize("command", ["g++-11 -std=c++17", "ccache g++-11", "{bin}/g++-11 -O2", "'g++-11"])
def test_a_compiler_may_have_a_launcher_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    _fake(tmp_path / "bin", "g++-11", "11.4.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CXX", command.format(bin=tmp_path / "bin"))
    found = tools.collect(Request(profiles.load("cpu"), Workspace(tmp_path / "ws"))).programs.get("g++")
    whole = not command.startswith("'")
    assert found == (Program(str(tmp_path / "bin" / "g++-11"), "11.4.0") if whole else None)


@pytest.mark.parametrize(("first", "status"), [("env", "ok"), ("other", "fail")])
def test_another_nvcc_behind_the_environments_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, status: str
) -> None:
    workspace = Workspace(tmp_path / "ws")
    line = "Cuda compilation tools, release {0}, V{0}.89"
    _fake(workspace.env / "bin", "nvcc", line.format("11.8"))
    _fake(tmp_path / "cuda", "nvcc", line.format("12.2"))
    folders = [str(workspace.env / "bin"), str(tmp_path / "cuda")]
    monkeypatch.setenv("PATH", ":".join([*(folders if first == "env" else reversed(folders)), "/usr/bin", "/bin"]))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    facts = Facts(
        str(workspace.root),
        tools=tools.collect(Request(profiles.load("gcp-2024.02"), workspace)),
        env=EnvFacts(str(workspace.env), "ready"),
        machine=MachineFacts(variables={"CONDA_PREFIX": str(workspace.env)}),
    )
    assert _check("env.nvcc", facts).status == status


@pytest.mark.parametrize(
    ("requirement", "facts", "words"),
    [
        ("machine.build-tools", _program("ninja", None), "ninja-build"),
        ("machine.compiler", _program("g++", None), "CXX=g++-11"),
        ("machine.python-headers", _env(has_headers=False, kind="conda"), "conda install -p /w/.venv"),
    ],
)
def test_a_remedy_names_what_the_check_then_finds(requirement: str, facts: Facts, words: str) -> None:
    remedy = _check(requirement, facts).remedy
    assert remedy is not None
    assert words in " ".join(remedy.commands)


def test_a_program_that_fails_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    (tmp_path / "bin" / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = tools.collect(Request(profiles.load("cpu"), Workspace(tmp_path / "ws")))
    assert found.programs["make"] == Program(str(tmp_path / "bin" / "make"), "")


def test_libaio_is_looked_for_where_compilers_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "libaio.h").touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libaio.so").touch()
    monkeypatch.setenv("CPATH", str(tmp_path / "include"))
    monkeypatch.setenv("LIBRARY_PATH", str(tmp_path / "lib"))
    found = tools.collect(Request(profiles.load("cpu"), Workspace(tmp_path / "ws")))
    assert found.headers["libaio.h"] == str(tmp_path / "include" / "libaio.h")
    assert found.libraries["libaio"] == str(tmp_path / "lib" / "libaio.so")
    assert str(tmp_path / "lib") in found.looked_in


def _commands(facts: Facts, profile: str) -> tuple[str, ...]:
    found = _check("env.nvcc", facts, profile)
    assert found.status == "fail"
    assert found.remedy is not None
    return found.remedy.commands


def test_a_toolkit_of_the_system_is_not_sought_in_the_environment() -> None:
    nvcc = Program("/apps/cuda/11.8/bin/nvcc", "11.8.89")
    facts = _program("nvcc", nvcc)
    assert _check("env.nvcc", facts, "abci-2024.02").status == "ok"
    foreign = dataclasses.replace(facts, tools=dataclasses.replace(facts.tools, cuda_home=FOREIGN))
    assert _commands(foreign, "abci-2024.02") == ("export PATH=/apps/cuda/11.8/bin:$PATH CUDA_HOME=/apps/cuda/11.8",)
    assert _commands(_program("nvcc", FOREIGN), "abci-2024.02") == ("module load cuda/11.8",)


def test_an_environment_with_another_nvcc_gets_the_right_toolkit() -> None:
    (command,) = _commands(_program("nvcc", Program(NVCC.path, "11.7.99")), "gcp-2024.02")
    assert command == "conda install -p /w/.venv nvidia/label/cuda-11.8.0::cuda-toolkit"
