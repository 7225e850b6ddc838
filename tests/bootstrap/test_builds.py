"""What is built in place, really built with g++ and really locked by processes: broken, found, mended, put back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootstrap.facts import EnvFacts, Facts, Torch, kernels
from bootstrap.requirements import load
from pipeline.errors import UcllmError
from tests.bootstrap.megatron import FOREIGN, HELPERS, MAKEFILE, Site, add_pybind11, make_site


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A checkout in which nothing has been built, and an environment without pybind11."""
    site = make_site(tmp_path, monkeypatch)
    site.data.mkdir(parents=True)
    (site.data / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (site.data / "helpers.cpp").write_text(HELPERS, encoding="utf-8")
    site.build.parent.mkdir(parents=True)
    return site


@pytest.fixture
def built(bare: Site) -> Site:
    """The helpers built by the fix."""
    add_pybind11(bare)
    found = bare.check("build.helpers")
    assert (found.status, "have not been built" in found.summary) == ("fail", True)
    bare.fix("build.helpers")
    assert bare.check("build.helpers").status == "ok"
    return bare


def right(site: Site) -> Path:
    """The file that this Python takes."""
    return site.data / f"helpers{site.facts().env.extension_suffix}"


def _wrong_suffix(site: Site) -> None:
    """The guide's first trap: another Python's config named the file."""
    (site.workspace.env / "bin" / "python3-config").unlink()
    right(site).unlink()
    site.make()
    assert (site.data / f"helpers{FOREIGN}").exists()


def _no_suffix(site: Site) -> None:
    (site.workspace.env / "bin" / "python3-config").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    right(site).unlink()
    site.make()
    assert (site.data / "helpers").exists()


def _corrupt(site: Site) -> None:
    right(site).write_bytes(right(site).read_bytes()[:100])


def _for_another_python(site: Site) -> None:
    says = 'PyErr_SetString(PyExc_ImportError, "version mismatch"); if (1) return 0; return PyModule'
    source = HELPERS.replace("return PyModule", says)
    (site.data / "helpers.cpp").write_text(source, encoding="utf-8")
    site.make()
    (site.data / "helpers.cpp").write_text(HELPERS, encoding="utf-8")
    right(site).touch()


def _crashes(site: Site) -> None:
    source = HELPERS.replace("return PyModule", "*(volatile int *)0 = 1; return PyModule")
    (site.data / "helpers.cpp").write_text(source, encoding="utf-8")
    site.make()
    (site.data / "helpers.cpp").write_text(HELPERS, encoding="utf-8")
    right(site).touch()


def _never_ready(site: Site) -> None:
    for path in site.data.glob("helpers*.so"):
        path.unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_wrong_suffix, "named for another Python"),
        (_no_suffix, "named for another Python"),
        (_corrupt, "cannot be loaded"),
        (_for_another_python, "version mismatch"),
        (_crashes, "Segmentation fault"),
        (_never_ready, "have not been built"),
    ],
)
def test_helpers(built: Site, fault: Callable[[Site], None], words: str) -> None:
    fault(built)
    before = {path.name: path.read_bytes() for path in built.data.iterdir()}
    found = built.check("build.helpers")
    assert found.status == "fail"
    assert words in "\n".join((found.summary, *found.evidence))
    assert found.remedy
    assert found.remedy.automatic
    built.fix("build.helpers")
    assert built.check("build.helpers").status == "ok"
    stamp = right(built).stat().st_mtime_ns
    built.make()
    assert right(built).stat().st_mtime_ns == stamp, "there is nothing to do at the next start"
    assert [path.name for path in built.data.glob("helpers*")].count("helpers.cpp") == 1
    assert len(list(built.data.glob("helpers*"))) == 2
    right(built).touch()
    built.make()
    assert built.check("build.helpers").status == "ok"
    assert (built.data / "Makefile").read_text(encoding="utf-8") == MAKEFILE
    built.undo()
    for name, body in before.items():
        assert (built.data / name).read_bytes() == body


def test_a_wrong_name_at_the_next_start_is_told_in_time(built: Site) -> None:
    (built.workspace.env / "bin" / "python3-config").unlink()
    found = built.check("build.helpers")
    assert (found.status, FOREIGN in "\n".join(found.evidence)) == ("warn", True)
    built.fix("build.helpers")
    assert built.check("build.helpers").status == "ok"


def test_an_older_file_is_told(built: Site) -> None:
    (built.data / "helpers.cpp").touch()
    assert built.check("build.helpers").status == "warn"
    built.make()
    assert built.check("build.helpers").status == "ok"


def test_an_edited_makefile_is_seen_and_not_edited(built: Site) -> None:
    """The guide's own remedy: the path of a python3-config in the Makefile."""
    edited = MAKEFILE.replace("python3-config", str(built.foreign / "python3-config"))
    (built.data / "Makefile").write_text(edited, encoding="utf-8")
    helpers = built.facts().builds.helpers
    assert helpers
    assert (helpers.makefile_edited, helpers.make_suffix) == (True, FOREIGN)
    plan = load(["build.helpers"])[0].plan
    assert plan
    assert plan(built.profile, built.facts(), built.workspace) == []


def test_our_python3_config_answers_as_python_does(built: Site) -> None:
    config = built.workspace.env / "bin" / "python3-config"
    said = subprocess.run([config, "--includes", "--prefix"], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [f"-I{_sysconfig('get_path', 'include')}", _sysconfig("get_config_var", "prefix")]
    assert subprocess.run([config], capture_output=True, check=False).returncode == 1
    assert subprocess.run([config, "--nonsense"], capture_output=True, check=False).returncode == 1
    for option in ("--ldflags", "--libs", "--cflags", "--abiflags", "--configdir", "--exec-prefix", "--help"):
        subprocess.run([config, option, "--embed"], check=option != "--help", capture_output=True)


def _sysconfig(function: str, name: str) -> str:
    base = getattr(sys, "_base_executable", sys.executable)
    code = f"import sysconfig; print(sysconfig.{function}({name!r}))"
    return subprocess.run([base, "-Ic", code], check=True, capture_output=True, text=True).stdout.strip()


def test_without_pybind11_it_says_so(bare: Site) -> None:
    with pytest.raises(UcllmError) as raised:
        bare.fix("build.helpers")
    assert raised.value.problems[0].code == "helpers.no-pybind11"


# Locks. The processes are real.


@pytest.fixture
def start(bare: Site) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python that prints a line when it is ready; ended at the end of the test."""
    children: list[subprocess.Popen[bytes]] = []

    def begin(*argv: str | Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, *argv], cwd=cwd or bare.workspace.root, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout
        child.stdout.readline()
        return child

    yield begin
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout
        child.stdout.close()


_HOLDS = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(60)"
_WORKS = "import time; print(flush=True); time.sleep(60)"
_WAITS = """
import os, sys, time
print(flush=True)
while os.path.exists(sys.argv[1]):
    time.sleep(0.1)
"""


@pytest.fixture
def folders(bare: Site) -> dict[str, Path]:
    """The build folder of each kind, with something finished in it."""
    found = {
        "build.fused-kernels": bare.build,
        "build.torch-extensions": bare.workspace.root.parent / "extensions" / "fused_adam",
    }
    for path in found.values():
        path.mkdir(parents=True)
        (path / "a.so").touch()
    return found


BOTH = pytest.mark.parametrize("name", ["build.fused-kernels", "build.torch-extensions"])


def with_torch(site: Site) -> Facts:
    """The facts, and a torch among them, which the small environment has not."""
    facts = site.facts()
    return dataclasses.replace(facts, env=dataclasses.replace(facts.env, torch=Torch("2.2.0", "11.8")))


@BOTH
def test_a_stale_lock_is_moved_aside(bare: Site, folders: dict[str, Path], name: str) -> None:
    assert bare.check(name, with_torch(bare)).status == "ok"
    lock = folders[name] / "lock"
    lock.touch()
    found = bare.check(name, with_torch(bare))
    assert found.status == "fail"
    assert found.remedy
    assert found.remedy.automatic
    bare.fix(name, with_torch(bare))
    assert bare.check(name, with_torch(bare)).status == "ok"
    assert (folders[name] / "a.so").exists()
    bare.undo()
    assert lock.exists()


@BOTH
def test_a_live_lock_is_left_alone(
    bare: Site, folders: dict[str, Path], name: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    lock = folders[name] / "lock"
    lock.touch()
    stale = with_torch(bare)  # what doctor saw before the user said yes
    lock.unlink()
    owner = start("-c", _HOLDS, lock)
    found = bare.check(name, with_torch(bare))
    assert (found.status, str(owner.pid) in found.summary) == ("warn", True)
    plan = load([name])[0].plan
    assert plan
    assert plan(bare.profile, with_torch(bare), bare.workspace) == []
    with pytest.raises(UcllmError) as raised:
        bare.fix(name, stale)
    assert raised.value.problems[0].code == "build.in-use"
    assert lock.exists()
    assert owner.poll() is None

    owner.kill()
    owner.wait()
    assert bare.check(name, with_torch(bare)).status == "fail", "killed: now it is stale"


@BOTH
def test_an_orphan_that_builds_there_is_stopped_first(
    bare: Site, folders: dict[str, Path], name: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    (folders[name] / "lock").touch()
    orphan = start("-c", _WORKS, cwd=folders[name])
    bystander = start("-c", _WORKS)
    found = bare.check(name, with_torch(bare))
    assert found.remedy
    assert found.remedy.commands[0] == f"kill {orphan.pid}"
    bare.fix(name, with_torch(bare))
    assert orphan.wait(5) < 0
    assert bystander.poll() is None
    assert bare.check(name, with_torch(bare)).status == "ok"


def test_trainings_that_wait_are_stopped_first(
    bare: Site, folders: dict[str, Path], start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    lock = folders["build.fused-kernels"] / "lock"
    lock.touch()
    for name in ("pretrain_gpt.py", "preprocess_data.py"):
        (bare.checkout / name).write_text(_WAITS, encoding="utf-8")
    waiter = start("-u", "pretrain_gpt.py", lock, cwd=bare.checkout)
    without = start("pretrain_gpt.py", lock, "--no-masked-softmax-fusion", cwd=bare.checkout)
    other = start(bare.checkout / "preprocess_data.py", lock)
    found = kernels.read_lock(lock, kernels.waits_for_megatron(bare.checkout))
    assert found
    assert found.waiters == (waiter.pid,)
    bare.fix("build.fused-kernels")
    assert waiter.wait(5) == -15, "it was stopped before the lock went, or it would have ended by itself"
    assert (without.wait(5), other.wait(5)) == (0, 0)
    assert bare.check("build.fused-kernels").status == "ok"


def test_a_waiter_that_does_not_stop_keeps_the_lock(
    bare: Site, folders: dict[str, Path], start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folders["build.fused-kernels"] / "lock"
    lock.touch()
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    (bare.checkout / "pretrain_gpt.py").write_text(stubborn + _WAITS, encoding="utf-8")
    start("pretrain_gpt.py", lock, cwd=bare.checkout)
    monkeypatch.setattr("bootstrap.requirements._kernel_build.STOP_S", 0.3)
    with pytest.raises(UcllmError) as raised:
        bare.fix("build.fused-kernels")
    assert raised.value.problems[0].code == "build.waiters"
    assert lock.exists()


def test_another_users_lock_cannot_be_judged(
    bare: Site, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders["build.fused-kernels"] / "lock").touch()
    monkeypatch.setattr("bootstrap.facts.kernels.os.getuid", lambda: 54321)
    assert bare.check("build.fused-kernels").status == "unknown"


NINJA = """\
cxx = c++
nvcc = /usr/local/cuda-11.8/bin/nvcc

cflags = -isystem {site}/torch/include -isystem {site}/torch/include/TH -isystem /opt/include/python3.9 -O3
cuda_cflags = -gencode arch=compute_80,code=sm_80 -gencode=arch=compute_86,code=[compute_86,sm_86]
"""


def test_the_stamp_of_build_ninja(tmp_path: Path) -> None:
    (tmp_path / "site" / "torch" / "include").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "site")
    (tmp_path / "build.ninja").write_text(NINJA.format(site=tmp_path / "site"), encoding="utf-8")
    env = EnvFacts("/w/.venv", "ready", torch=Torch("2.2.0", "11.8", folder=str(tmp_path / "link" / "torch")))
    build = kernels.read(tmp_path, env)
    assert build
    include = str(tmp_path / "link" / "torch" / "include")
    assert build.stamp == {"cuda": "11.8", "archs": "80,86,86+PTX", "python": "3.9", "include": include}
    (tmp_path / kernels.STAMP).write_text('{"torch": "2.1.0"}', encoding="utf-8")
    build = kernels.read(tmp_path, env)
    assert build
    assert build.stamp == {"torch": "2.1.0"}


def test_a_build_for_something_else_is_moved_aside(bare: Site, folders: dict[str, Path]) -> None:
    folder = folders["build.fused-kernels"]
    (folder / kernels.STAMP).write_text('{"python": "3.6"}', encoding="utf-8")
    found = bare.check("build.fused-kernels")
    assert (found.status, "another GPU" in found.summary) == ("fail", True)
    bare.fix("build.fused-kernels")
    assert not folder.exists()
    assert bare.check("build.fused-kernels").status == "ok"
    bare.undo()
    assert (folder / "a.so").exists()


def test_the_real_machine_has_processes() -> None:
    mine = {process.pid: process for process in kernels.processes()}
    assert mine
    assert all(process.argv for process in mine.values())
