"""The environment's facts on real environments, and its checks on composed facts."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootstrap.facts import CondaFacts, Dist, EnvFacts, Facts, MachineFacts, Torch
from bootstrap.facts import conda as conda_facts
from bootstrap.facts import env as env_facts
from bootstrap.facts.answer import MARK, said
from bootstrap.facts.env import PROBE
from bootstrap.findings import Finding
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Conda, Cuda, Pin, Profile, TorchBuild, Window
from bootstrap.requirements import Requirement
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Tiny, content

ENV = "/w/.venv"
PROFILE = Profile(
    "p",
    "",
    Path("/p"),
    "r",
    {},
    (),
    ("3.9",),
    env_kind="conda",
    pins=(Pin("numpy", "1.26.4", "", "r.lock"), Pin("trl", "0.7.10", "", "r.lock")),
    cuda=Cuda("11.8", "450", 11, ("80",)),
    torch_build=TorchBuild("2.2.0", "11.8"),
    conda=Conda("23.10.0-1", "Miniconda3.sh", "ab" * 32, {"python": "3.9.18=h1_0", "cuda-nvcc": "11.8.89"}),
    windows={"trl": Window("<=0.11.4", "the collator is gone")},
)
FACTS = Facts(
    "/w",
    machine=MachineFacts(
        system="Linux", machine="x86_64", variables={"LD_LIBRARY_PATH": f"{ENV}/lib:/usr/local/cuda-12.2/lib64"}
    ),
    conda=CondaFacts("/m", "23.10.0", True, ("/m",), {"python": "3.9.18=h1_0", "cuda-nvcc": "11.8.89=0"}),
    env=EnvFacts(
        ENV,
        "ready",
        kind="conda",
        python=f"{ENV}/bin/python",
        version="3.9.18",
        has_pip=True,
        pip_python=f"{ENV}/bin/python3.9",
        dists={
            "numpy": Dist("1.26.4"),
            "torch": Dist(
                "2.2.0", requires=('nvidia-nccl-cu12; platform_system == "Linux"', "numpy>=1; python_version>'3'")
            ),
            "trl": Dist("0.7.10", requires=("torch>=1.4", "tomli; python_version < '3.0'")),
        },
        torch=Torch("2.2.0", "11.8", False, f"{ENV}/lib/python3.9/site-packages/torch"),
    ),
)


def requirement(name: str) -> Requirement:
    found: Requirement = importlib.import_module(f"bootstrap.requirements.{name}").REQUIREMENT
    return found


def ask(name: str, *, profile: Profile = PROFILE, **env: Any) -> Finding:
    facts = dataclasses.replace(FACTS, env=dataclasses.replace(FACTS.env, **env))
    return requirement(name).check(profile, facts)


CHECKS = [
    "env_python",
    "env_miniconda",
    "env_conda_activate",
    "env_conda_packages",
    "env_library_path",
    "env_variables",
    "env_pip",
    "env_shadowing",
    "env_dependencies",
    "env_torch",
    "env_numpy",
    "env_windows",
]


@pytest.mark.parametrize("name", CHECKS)
def test_healthy(name: str) -> None:
    finding = ask(name)
    assert finding.status == "ok", finding
    assert finding.evidence
    assert requirement(name).id.replace(".", "_").replace("-", "_") == name


def _dist(name: str, version: str, *requires: str) -> dict[str, Any]:
    return {"dists": {**FACTS.env.dists, name: Dist(version, requires=requires)}}


BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("env_python", {"kind": "venv"}, "fail", "not an environment that conda made"),
    ("env_python", {"state": "absent"}, "fail", "no Python environment"),
    ("env_python", {"version": "3.12.1"}, "fail", "3.12"),
    ("env_pip", {"pip_python": "/usr/bin/python3"}, "fail", "/usr/bin/python3"),
    ("env_pip", {"pip_python": ""}, "fail", "found none"),
    ("env_shadowing", {"shadows": ("/w/site/six",)}, "fail", "/w/site/six"),
    ("env_shadowing", {"foreign_paths": ("/x",)}, "warn", "/x"),
    ("env_shadowing", {"foreign_paths": ("/x",), "foreign_first": ("/x",)}, "fail", "/x"),
    ("env_shadowing", {"foreign_paths": ("/w/llm-jp-sft",)}, "ok", ""),
    ("env_dependencies", {"dists": {}}, "unknown", ""),
    ("env_dependencies", _dist("trl", "0.7.10", "peft>=0.4"), "fail", "trl requires peft>=0.4: missing"),
    ("env_dependencies", _dist("trl", "0.7.10", "torch>=2.3"), "fail", "2.2.0 is there"),
    ("env_dependencies", _dist("trl", "0.7.10", "numpy>=2"), "ok", ""),
    ("env_dependencies", _dist("mine", "1", "gone"), "warn", "mine requires gone"),
    ("env_dependencies", _dist("mine", "1", "!?"), "ok", ""),
    ("env_torch", {"torch": None}, "fail", "not installed"),
    ("env_torch", {"torch": Torch("2.2.0", "12.1")}, "fail", "CUDA 12.1"),
    ("env_torch", {"torch": Torch("2.2.0+cpu", "")}, "fail", "CPU only"),
    ("env_torch", {"torch": Torch("2.2.0+cu118", "11.8")}, "ok", ""),
    ("env_torch", {"torch": Torch("2.2.1", "11.8")}, "fail", "2.2.1"),
    ("env_numpy", _dist("numpy", "2.0.0"), "fail", "too new"),
    ("env_numpy", _dist("numpy", "so new"), "unknown", ""),
    ("env_numpy", {**_dist("numpy", "2.0.0"), "torch": Torch("2.3.0+cu118", "11.8")}, "ok", ""),
    ("env_numpy", {"dists": {}}, "skipped", ""),
    ("env_windows", _dist("trl", "0.24.0"), "fail", "the collator is gone"),
    ("env_windows", _dist("trl", "odd"), "unknown", ""),
    ("env_windows", {"dists": {}}, "skipped", ""),
    ("env_variables", {"user_site": "/u", "user_dists": {"numpy": "2.0"}}, "warn", "numpy 2.0 ≠ 1.26.4"),
    ("env_variables", {"user_site": "/u", "user_dists": {"numpy": "1.26.4", "black": "1"}}, "ok", ""),
]


@pytest.mark.parametrize(("name", "env", "status", "words"), BROKEN)
def test_broken(name: str, env: dict[str, Any], status: str, words: str) -> None:
    finding = ask(name, **env)
    assert finding.status == status, finding
    assert words in "\n".join((finding.summary, *finding.evidence))
    if status in ("fail", "warn"):
        assert finding.remedy is not None


CONDA: list[tuple[str, CondaFacts, str]] = [
    ("env_miniconda", CondaFacts(looked_in=("/m",)), "fail"),
    ("env_miniconda", CondaFacts("/m", ""), "unknown"),
    ("env_miniconda", CondaFacts("/m", "4.9.2"), "warn"),
    ("env_miniconda", CondaFacts("/m", "24.1.0"), "ok"),
    ("env_conda_activate", CondaFacts("/m", "1", False), "fail"),
    ("env_conda_activate", CondaFacts("/m", "1", None), "unknown"),
    ("env_conda_packages", CondaFacts(), "unknown"),
    ("env_conda_packages", CondaFacts(packages={"python": "3.9.18=h1_0"}), "fail"),
    ("env_conda_packages", CondaFacts(packages={"python": "3.9.18=other", "cuda-nvcc": "11.8.89=0"}), "fail"),
]


@pytest.mark.parametrize(("name", "conda", "status"), CONDA)
def test_conda(name: str, conda: CondaFacts, status: str) -> None:
    finding = requirement(name).check(PROFILE, dataclasses.replace(FACTS, conda=conda))
    assert finding.status == status
    without = dataclasses.replace(PROFILE, conda=None)
    assert requirement(name).check(without, dataclasses.replace(FACTS, conda=conda)).status == "skipped"


@pytest.mark.parametrize(
    ("name", "variables", "status", "command"),
    [
        ("env_library_path", {}, "ok", ""),
        ("env_library_path", {"LD_LIBRARY_PATH": f"/usr/local/cuda-11.8/lib64:{ENV}/lib"}, "ok", ""),
        ("env_library_path", {"LD_LIBRARY_PATH": f"/usr/local/cuda/lib64:{ENV}/lib"}, "ok", ""),
        ("env_library_path", {"LD_LIBRARY_PATH": "/apps/cuda/12.2.0/lib64"}, "ok", ""),
        (
            "env_library_path",
            {"LD_LIBRARY_PATH": f"/apps/cuda/12.2.0/lib64:{ENV}/lib"},
            "warn",
            f"export LD_LIBRARY_PATH={ENV}/lib",
        ),
        ("env_library_path", {"LD_LIBRARY_PATH": "/a:"}, "warn", "export LD_LIBRARY_PATH=/a"),
        ("env_library_path", {"LD_LIBRARY_PATH": ":"}, "warn", "unset LD_LIBRARY_PATH"),
        ("env_variables", {"PYTHONPATH": "/x"}, "warn", "unset PYTHONPATH"),
        ("env_variables", {"PYTHONPATH": "/w/Megatron-DeepSpeed"}, "ok", ""),
        ("env_variables", {"PYTHONHOME": "/x"}, "warn", "unset PYTHONHOME"),
    ],
)
def test_variables(name: str, variables: dict[str, str], status: str, command: str) -> None:
    machine = dataclasses.replace(FACTS.machine, variables=variables)
    finding = requirement(name).check(PROFILE, dataclasses.replace(FACTS, machine=machine))
    assert finding.status == status, finding
    assert command in (finding.remedy.commands if finding.remedy else ("",))


# Real environments from here on.


def test_the_facts_of_a_real_environment(healthy: Tiny) -> None:
    facts = env_facts.read(healthy.env)
    assert (facts.state, facts.kind, facts.prefix) == ("ready", "venv", str(healthy.env))
    assert facts.dists["alpha"] == Dist("1.0")
    assert Path(facts.pip_python).parent == healthy.env / "bin"
    assert (facts.foreign_paths, facts.shadows, facts.user_site) == ((), (), "")
    assert facts.has_headers == (Path(facts.include) / "Python.h").exists()


def test_torch_deepspeed_and_extensions_are_read_from_files(healthy: Tiny) -> None:
    torch, deepspeed = healthy.site / "torch", healthy.site / "deepspeed"
    config = torch / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    config.parent.mkdir(parents=True)
    config.write_text('set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")\n', encoding="utf-8")
    (torch / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.2.0'\ncuda: Optional[str] = '11.8'\n", encoding="utf-8"
    )
    (torch / "__init__.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    library = deepspeed / "ops" / "adam" / "fused_adam_op.cpython-39-x86_64-linux-gnu.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (deepspeed / "git_version_info_installed.py").write_text(
        "version='0.12.4'\ngit_hash='unknown'\ninstalled_ops={'fused_adam': True, 'async_io': False}\n"
        "compatible_ops={'fused_adam': True}\ntorch_info={'version': '2.2', 'cuda_version': '11.8'}\n",
        encoding="utf-8",
    )
    extension = healthy.site / "apex_C.cpython-39-x86_64-linux-gnu.so"
    extension.touch()
    facts = env_facts.read(healthy.env)
    assert facts.torch == Torch("2.2.0", "11.8", False, str(torch))
    assert facts.deepspeed is not None
    assert facts.deepspeed.installed == {"fused_adam": True, "async_io": False}
    assert (facts.deepspeed.version, facts.deepspeed.torch, facts.deepspeed.cuda) == ("0.12.4", "2.2", "11.8")
    assert facts.deepspeed.libraries == (str(library),)
    assert facts.extensions == {"apex_C": (str(extension),)}


def test_requirements_without_extras(healthy: Tiny) -> None:
    metadata = healthy.site / "alpha-1.0.dist-info" / "METADATA"
    lines = "Requires-Dist: beta>=2\nRequires-Dist: gone; extra == 'x'\n\nRequires-Dist: of the description\n"
    metadata.write_text(metadata.read_text(encoding="utf-8") + lines, encoding="utf-8")
    assert env_facts.read(healthy.env).dists["alpha"].requires == ("beta>=2",)


def test_a_conda_environment_is_one_by_its_metadata(tmp_path: Path) -> None:
    """A base Python with ``conda-meta`` beside it, as conda makes them; here a copy of the probe's question only."""
    base = Path(sys.base_prefix)
    code = f"import sys; sys.argv = ['probe', {MARK!r}]; sys.prefix = sys.base_prefix = {str(tmp_path)!r}\n"
    code += f"exec(compile(open({str(PROBE)!r}).read(), 'probe', 'exec'), {{'__name__': '__main__'}})"
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "conda-meta" / "python-3.9.18-h1_0.json").touch()
    done = subprocess.run([base / "bin" / "python3", "-Ic", code], capture_output=True, text=True, check=True)
    assert said(done.stdout)[0]["kind"] == "conda"
    assert conda_facts.packages(tmp_path) == {"python": "3.9.18=h1_0"}


def test_where_conda_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "mine" / "bin" / "conda"))
    places = conda_facts.roots(tmp_path / "ws")
    assert places == [tmp_path / "mine", tmp_path / "ws" / "miniconda3", tmp_path / "home" / "miniconda3"]
    nothing = conda_facts.read(tmp_path / "env", places)
    assert (nothing.prefix, nothing.version, nothing.shell_hook, nothing.packages) == ("", "", None, {})
    root = tmp_path / "ws" / "miniconda3"
    for name in ("bin/conda", "conda-meta/conda-23.10.0-py310h06a4308_0.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = conda_facts.read(tmp_path / "env", places)
    assert (found.prefix, found.version, found.shell_hook) == (str(root), "23.10.0", False)


def _foreign_pth(tiny: Tiny) -> None:
    (tiny.root / "other").mkdir()
    (tiny.site / "mine.pth").write_text(f"{tiny.root / 'other'}\n", encoding="utf-8")


def _foreign_first(tiny: Tiny) -> None:
    (tiny.root / "other").mkdir()
    line = f"import sys; sys.path.insert(0, '{tiny.root / 'other'}')\n"
    (tiny.site / "mine.pth").write_text(line, encoding="utf-8")


def _shadow(tiny: Tiny) -> None:
    (tiny.site / "alpha").mkdir()
    (tiny.site / "alpha" / "__init__.py").touch()


def _pip_of_another(tiny: Tiny) -> None:
    (tiny.env / "bin" / "pip").write_text("#!/usr/bin/python3\nimport sys\n", encoding="utf-8")


def _no_pip_command(tiny: Tiny) -> None:
    (tiny.env / "bin" / "pip").unlink()


@pytest.mark.parametrize(
    ("name", "fault", "status"),
    [
        ("env_shadowing", _foreign_pth, "warn"),
        ("env_shadowing", _foreign_first, "fail"),
        ("env_shadowing", _shadow, "fail"),
        ("env_pip", _pip_of_another, "fail"),
        ("env_pip", _no_pip_command, "fail"),
    ],
)
def test_break_detect_fix_undo(healthy: Tiny, name: str, fault: Callable[[Tiny], None], status: str) -> None:
    workspace, asked = Workspace(healthy.workspace), requirement(name)
    profile = dataclasses.replace(PROFILE, env_kind="venv", pins=())

    def look() -> tuple[Facts, Finding]:
        facts = Facts(str(workspace.root), env=env_facts.read(workspace.env))
        return facts, asked.check(profile, facts)

    assert look()[1].status == "ok"
    before = content(healthy.env)
    fault(healthy)
    broken = content(healthy.env)
    facts, finding = look()
    assert finding.status == status, finding
    assert finding.remedy is not None
    assert finding.remedy.automatic
    journal = Journal(workspace)
    assert asked.plan is not None
    for action in asked.plan(profile, facts, workspace):
        action.act(Recorder(journal, 1, asked.id, lambda _text: None))
    assert look()[1].status == "ok"
    assert content(healthy.env) == before
    undo(journal, fixes(journal)[0])
    if fault is not _no_pip_command:  # nothing stood there that could be put back
        assert content(healthy.env) == broken


def test_an_adopted_python_may_be_reached_by_a_pth(healthy: Tiny) -> None:
    _foreign_pth(healthy)
    facts = Facts(str(healthy.workspace), env=env_facts.read(healthy.env))
    assert facts.env.foreign_paths == (str(healthy.root / "other"),)
    adopt = dataclasses.replace(PROFILE, env_kind="adopt")
    assert requirement("env_shadowing").check(adopt, facts).status == "ok"


def test_leftovers_and_half_installed_packages_are_no_shadows(healthy: Tiny) -> None:
    (healthy.site / "alpha" / "__pycache__").mkdir(parents=True)  # what pip leaves of a package
    (healthy.site / "mine.py").touch()
    (healthy.site / "beta-2.0.dist-info" / "RECORD").unlink()
    assert env_facts.read(healthy.env).shadows == ()


@pytest.mark.parametrize("shut", [True, False])
def test_the_user_site_counts_where_python_would_use_it(tmp_path: Path, shut: bool) -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"
    user = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    info = user / "numpy-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9\n", encoding="utf-8")
    variables = {**os.environ, "PYTHONUSERBASE": str(tmp_path), "PYTHONNOUSERSITE": "1" if shut else ""}
    done = subprocess.run([base, "-I", PROBE, MARK], env=variables, capture_output=True, text=True, check=True)
    (answer,) = said(done.stdout)
    assert answer["user_site"] == ("" if shut else str(user))
    assert answer["user_dists"] == ({} if shut else {"numpy": "9.9"})
    assert answer["dists"].get("numpy", [""])[0] != "9.9"
