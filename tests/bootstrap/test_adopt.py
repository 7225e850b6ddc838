"""Profile ``host``: an environment of ours on a Python of the user's that has torch, which stays as it is.

The torch of most tests is a stand-in: a tiny wheel of that name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap import profiles
from bootstrap.facts import Base, Dist, EnvFacts, Facts, MachineFacts, Torch
from bootstrap.facts.bases import candidates
from bootstrap.facts.deep import compare_files
from bootstrap.facts.probe import ADOPT
from bootstrap.requirements import _adopt, _ranges, env_dependencies, env_packages, env_python
from tests.bootstrap.conftest import Tiny, stamps
from tests.bootstrap.wheels import build
from tests.conftest import environment_python

PROFILE = """profile_version = 1
description = "Adopt a Python with a stand-in for torch"
recipe = "botchan-tiny"
requirements = ["env.python", "env.pip", "env.shadowing", "env.packages", "env.dependencies"]

[engines]
pretrain = "torch"
finetune = "trl"

[python]
versions = ["3.10", "3.11", "3.12", "3.13"]
kind = "adopt"

[packages]
requirements = [{ranges}]
"""
PURELIB = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def site(prefix: Path) -> Path:
    """Where the stand-ins lie in a Python made of ours."""
    return prefix / PURELIB


def files(folder: Path) -> dict[str, str]:
    """Every file, folder and link: what is in it, or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        body = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            body = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = body
    return found


def unpack(wheel: Path, folder: Path) -> None:
    """Install a wheel as quickly as can be: nothing of the tests' wheels needs more."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def make_venv(prefix: Path) -> Path:
    """A virtual environment without pip; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    return prefix / "bin" / "python"


def make_plain(prefix: Path) -> Path:
    """An interpreter that is no virtual environment, with a site-packages of its own; returns its Python."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    library = prefix / "lib" / stdlib.name
    library.mkdir(parents=True)
    for path in stdlib.iterdir():
        if path.name not in ("site-packages", "dist-packages"):
            (library / path.name).symlink_to(path)
    python = prefix / "bin" / "python3"
    python.parent.mkdir()
    (library / "site-packages").mkdir()
    shutil.copy(Path(sys.executable).resolve(), python)
    said = subprocess.run(
        [python, "-Ic", "import sys, sysconfig; print(sys.base_prefix, sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.stdout.split() != [str(prefix), str(library / "site-packages")]:
        pytest.skip(f"this Python cannot be copied: {said.stdout}{said.stderr}")
    return python


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """Two profiles that adopt. zeta wants a newer gamma than the adopted Python has."""
    tiny = Tiny(tmp_path)
    ranges = {"adopt": '"torch>=9", "alpha>=1.0,<2", "beta", "gamma"', "strict": '"torch>=9", "zeta"'}
    for name, text in ranges.items():
        (tmp_path / "locks" / name).mkdir(parents=True)
        (tmp_path / "locks" / name / "profile.toml").write_text(PROFILE.format(ranges=text), encoding="utf-8")
    wheels = tmp_path / "wheels"
    build(wheels, "alpha", "1.0")
    build(wheels, "beta", "2.0")
    build(wheels, "gamma", "2.0")
    build(wheels, "zeta", "1.0", requires="gamma>=2")
    return tiny


def fill(tiny: Tiny, folder: Path) -> None:
    """torch, an alpha that is too old, gamma, and delta as an editable install."""
    for name, version in (("torch", "9.9+cpu"), ("alpha", "0.5"), ("gamma", "1.0")):
        unpack(build(tiny.root / "theirs", name, version), folder)
    checkout = tiny.root / "checkout"
    checkout.mkdir()
    (checkout / "delta.py").touch()
    (folder / "delta.pth").write_text(f"{checkout}\n", encoding="utf-8")


def where(python: Path, *modules: str, options: tuple[str, ...] = ()) -> list[str]:
    """The files that a Python imports these from, as a user's program would, byte code and all."""
    code = f"import {', '.join(modules)}; print({', '.join(f'{name}.__file__' for name in modules)}, sep='\\n')"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    argv = (str(python), *options, "-c", code)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def shell_with(tiny: Tiny, *pythons: Path) -> None:
    """What the command line finds on PATH."""
    tiny.variables["PATH"] = os.pathsep.join([*(str(path.parent) for path in pythons), os.environ["PATH"]])


@pytest.mark.parametrize("make", [make_venv, make_plain])
def test_setup_adopts_and_changes_nothing_of_theirs(tiny: Tiny, make: Callable[[Path], Path]) -> None:
    prefix = tiny.root / "theirs-ümlaut"
    base = make(prefix)
    fill(tiny, site(prefix))
    before, checkout = files(prefix), files(tiny.root / "checkout")
    shell_with(tiny, base)
    tiny.variables["PYTHONDONTWRITEBYTECODE"] = ""  # as in a user's shell
    made = tiny("setup", "--profile", "adopt", "--json")
    assert made.code == 0, made.out + made.err
    assert set(made.statuses.values()) == {"ok"}
    told = next(item["summary"] for item in made.json["data"]["findings"] if item["id"] == "env.python")
    assert "torch 9.9+cpu of " + str(prefix) in told

    child = tiny.env / "bin" / "python"
    theirs = where(base, "torch", "delta", "alpha", "gamma", options=("-B",))
    ours = where(child, "torch", "delta", "alpha", "gamma")
    assert ours[:2] == theirs[:2] == [str(site(prefix) / "torch" / "__init__.py"), str(tiny.root / "checkout/delta.py")]
    assert theirs[2:] == [str(site(prefix) / "alpha.py"), str(site(prefix) / "gamma.py")]
    assert ours[2:] == [str(site(tiny.env) / "alpha.py"), str(site(prefix) / "gamma.py")], "the environment's own wins"
    assert (site(tiny.env) / "beta.py").is_file()
    assert (files(prefix), files(tiny.root / "checkout")) == (before, checkout)


@pytest.mark.slow
def test_it_stays_healthy_in_another_shell_and_is_made_again_when_broken(tiny: Tiny) -> None:
    prefix = tiny.root / "theirs"
    base = make_venv(prefix)
    fill(tiny, site(prefix))
    other = make_venv(tiny.root / "other")
    unpack(build(tiny.root / "newer", "torch", "9.10"), site(tiny.root / "other"))
    shell_with(tiny, base, other)
    before = files(prefix)
    assert tiny("setup", "--profile", "adopt", "--json").code == 0

    shell_with(tiny, other)
    doctor = tiny.doctor()
    assert (doctor.code, set(doctor.statuses.values())) == (0, {"ok"})
    again = tiny("setup", "--profile", "adopt", "--json")
    assert (again.code, again.json["data"]["actions"]) == (0, [])

    strict = tiny("doctor", "--profile", "strict", "--fix", "--yes", "--json")
    assert strict.code == 4
    (problem,) = strict.json["errors"]
    assert problem["code"] == "env.packages-failed"
    assert "ResolutionImpossible" in problem["message"] or "conflict" in problem["message"]
    assert str(base) in problem["hint"]
    assert files(prefix) == before

    (site(tiny.env) / ADOPT).unlink()
    broken = tiny.doctor()
    finding = next(item for item in broken.json["data"]["findings"] if item["id"] == "env.python")
    assert (finding["status"], finding["remedy"]["automatic"]) == ("fail", True)
    assert tiny("doctor", "--fix", "--yes", "--json").code == 0
    assert where(tiny.env / "bin" / "python", "torch") == [str(site(tiny.root / "other") / "torch" / "__init__.py")]
    assert [name.split("-")[0] for name in tiny.backups] == [".venv"]

    shutil.rmtree(site(tiny.root / "other") / "torch")
    shell_with(tiny, base)
    gone = tiny.doctor()
    finding = next(item for item in gone.json["data"]["findings"] if item["id"] == "env.python")
    assert (finding["status"], finding["summary"]) == ("fail", "The adopted Python has no torch any more.")


@pytest.mark.env
@pytest.mark.slow
def test_the_real_torch_is_imported_from_the_same_path(tmp_path: Path) -> None:
    base = environment_python()
    if not (base.parents[1] / PURELIB / "torch").is_dir():
        pytest.skip(f"no environment of profile cpu for this Python at {base}")
    before = stamps(base.parents[1])
    tiny = Tiny(tmp_path)
    shutil.copytree(profiles.locks_dir() / "host", tmp_path / "locks" / "host")
    shell_with(tiny, base)
    made = tiny("setup", "--profile", "host", "--json")
    assert made.code == 0, made.out + made.err
    assert made.statuses["env.packages"] == made.statuses["env.dependencies"] == "ok"
    torch = str(base.parents[1] / PURELIB / "torch" / "__init__.py")
    assert where(tiny.env / "bin" / "python", "torch", "transformers")[0] == torch
    assert stamps(base.parents[1]) == before


def test_the_active_python_is_asked_first(tmp_path: Path) -> None:
    active, conda, path = (make_venv(tmp_path / name).parent for name in ("active", "conda", "path"))
    variables = {"PATH": str(path), "VIRTUAL_ENV": str(active.parent), "CONDA_PREFIX": str(conda.parent)}
    found = [Path(name).parent for name in candidates(variables, ("3.11",))]
    assert found[:3] == [path, active, conda]
    assert found[-1] == Path(sys.executable).parent
    assert len(found) <= 5


HOST = profiles.load("host")
TORCH = Torch("2.13.0", folder="/theirs/lib/python3.11/site-packages/torch")
BASE = Base("/theirs/bin/python", "3.11.7", "/theirs", "venv", ("/theirs/lib/python3.11/site-packages",), TORCH)
DISTS = {"torch": Dist("2.13.0"), "numpy": Dist("2.4.6"), "mine": Dist("1.0", whole=False), "odd": Dist("1.0build1")}
ENV = EnvFacts(
    *("/w/.venv", "ready", "venv", "/w/.venv/bin/python", "/w/.venv", "3.11.7"),
    has_pip=True,
    base=BASE.path,
    adopted=("numpy", "odd", "torch"),
    dists=DISTS,
    torch=TORCH,
)


def facts(*bases: Base, **changes: object) -> Facts:
    """A healthy adopted environment but for ``changes``, in a shell that offers these Pythons."""
    return Facts("/w", machine=MachineFacts(bases=bases), env=dataclasses.replace(ENV, **changes))  # type: ignore[arg-type]


OWN = dataclasses.replace(TORCH, folder="/w/.venv/lib/python3.11/site-packages/torch")


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({}, "ok", "/theirs/bin/python"),
        ({"state": "absent"}, "fail", "no Python environment"),
        ({"state": "broken", "error": "no such file"}, "fail", "does not work"),
        ({"base": ""}, "fail", "adopts no other"),
        ({"torch": None}, "fail", "no torch any more"),
        ({"torch": OWN}, "fail", "torch of its own"),
        ({"version": "3.9.18"}, "fail", "3.9"),
        ({"has_pip": False}, "fail", "no pip"),
    ],
)
def test_what_is_an_adopting_environment(changes: dict[str, object], status: str, word: str) -> None:
    for bases in ((), (BASE,)):
        finding = env_python.check(HOST, facts(*bases, **changes))
        assert (finding.status, word in finding.summary) == (status, True), finding
        if finding.remedy:
            assert finding.remedy.automatic == bool(bases)
            assert bool(finding.remedy.commands) == bool(bases)


def test_no_python_with_torch_is_told_with_all_that_were_looked_at() -> None:
    bare = dataclasses.replace(BASE, path="/bare/bin/python", torch=None)
    users = dataclasses.replace(BASE, path="/users/bin/python", torch=None, user_torch=True)
    old = dataclasses.replace(BASE, path="/old/bin/python", version="3.9.18")
    finding = env_python.check(HOST, facts(bare, users, old, state="absent"))
    assert finding.status == "fail"
    text = "\n".join(finding.evidence)
    assert "/bare/bin/python: Python 3.11.7, no torch" in text
    assert "/users/bin/python: Python 3.11.7, torch only in your own site-packages" in text
    assert "/old/bin/python: Python 3.9.18, torch 2.13.0" in text
    assert finding.remedy
    assert "Activate a Python (3.10, 3.11, 3.12, 3.13) that has torch" in finding.remedy.text
    assert _adopt.actions(HOST, facts(bare, users, old)) == []


def test_an_interpreter_shows_its_packages_by_itself() -> None:
    for base, shown, named in (
        (BASE, False, True),
        (dataclasses.replace(BASE, system_site=True), True, True),
        (dataclasses.replace(BASE, kind="conda"), True, False),
        (dataclasses.replace(BASE, kind="plain"), True, False),
    ):
        (action,) = _adopt.actions(HOST, facts(base, state="absent"))
        assert ("--system-site-packages" in action.commands[0]) == shown
        assert any("addsitedir" in command for command in action.commands) == named


def test_ranges_are_met_by_what_the_environment_imports() -> None:
    profile = dataclasses.replace(HOST, ranges=("torch>=2.6", "numpy", "mine<2", "other>=1"))
    finding = env_packages.check(profile, facts())
    assert finding.status == "fail"
    assert finding.evidence[1:] == ("mine<2: half installed", "other>=1: missing")
    assert finding.remedy
    assert finding.remedy.automatic
    assert "torch" not in finding.remedy.commands[-1]
    assert _ranges.constraints(facts(), {"mine", "other"}) == ["numpy==2.4.6", "torch==2.13.0"]
    assert _ranges.constraints(facts(), {"numpy"}) == ["torch==2.13.0"]
    met = dataclasses.replace(profile, ranges=("torch>=2.6", "numpy"))
    assert env_packages.check(met, facts()).status == "ok"
    newer = env_packages.check(dataclasses.replace(profile, ranges=("torch>=3", "other")), facts())
    assert (newer.status, newer.remedy and newer.remedy.automatic) == ("fail", False)
    assert _ranges.actions(dataclasses.replace(profile, ranges=("torch>=3", "other")), facts()) == []


def test_what_is_wrong_in_the_adopted_python_by_itself_is_not_told() -> None:
    dists = {"numpy": Dist("1.26"), "torch": Dist("2.13.0", requires=("numpy>=2", "absent")), "mine": Dist("1.0")}
    assert env_dependencies.check(HOST, facts(dists=dists)).status == "ok"
    hidden = dists | {"odd": Dist("1.0", requires=("mine>=2",))}
    finding = env_dependencies.check(HOST, facts(dists=hidden))
    assert (finding.status, finding.evidence[-1]) == ("warn", "odd requires mine>=2: 1.0 is there")
    assert finding.remedy
    assert finding.remedy.commands == ()


def test_another_profile_does_not_take_an_adopting_environment_for_its_own() -> None:
    cpu = env_python.check(profiles.load("cpu"), facts())
    assert (cpu.status, "it adopts /theirs/bin/python" in cpu.evidence) == ("fail", True)


def test_only_its_own_files_are_compared_with_their_hashes(tmp_path: Path) -> None:
    theirs, ours = (make_venv(tmp_path / name) for name in ("theirs", "ours"))
    folder = site(tmp_path / "theirs")
    unpack(build(tmp_path / "wheels", "alpha", "1.0"), folder)
    lines = _adopt.pth(dataclasses.replace(BASE, folders=(str(folder),)))
    (site(tmp_path / "ours") / ADOPT).write_text("\n".join(lines), encoding="ascii")
    assert where(ours, "alpha") == [str(folder / "alpha.py")]
    (folder / "alpha.py").write_text("changed", encoding="utf-8")
    assert compare_files(str(theirs))["changed"] == {"alpha": (str(folder / "alpha.py"),)}
    seen = compare_files(str(ours))
    assert (seen["checked"], seen["changed"], seen["missing"]) == (0, {}, {})
