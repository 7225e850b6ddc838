"""Real faults in a real workspace: healthy → detected, and only what waits beside it → fixed → healthy → undone."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bootstrap import test_doctor as broken
from tests.bootstrap.megatron import FOREIGN
from tests.faults.conftest import Yard, git


@dataclass(frozen=True)
class Fault:
    """``id`` is the finding it must give, ``status`` how; ``moves``: the fix moves something aside.

    ``returns``: undone, the fault is there again. (A wrong file back beside the right one is none.)
    """

    id: str
    do: Callable[[Yard], None]
    status: str = "fail"
    fixable: bool = True
    moves: bool = True
    returns: bool = True


def _shebang(yard: Yard) -> None:
    for path in (yard.env / "bin").glob("pip*"):
        path.write_text("#!/usr/bin/python3\nprint('another')\n", encoding="utf-8")


def _foreign_pth(yard: Yard) -> None:
    (yard.root / "old").mkdir()
    (yard.site / "old.pth").write_text(f"{yard.root / 'old'}\n", encoding="utf-8")


def _stray_module(yard: Yard) -> None:
    # A folder beside the module: Python imports the folder.
    (yard.site / "alpha").mkdir()
    (yard.site / "alpha" / "__init__.py").touch()


def _pythonpath(yard: Yard) -> None:
    (yard.root / "old").mkdir()
    yard.variables["PYTHONPATH"] = str(yard.root / "old")


def _conflict(yard: Yard) -> None:
    """Someone installed something that wants another alpha than the locks'."""
    folder = yard.site / "zeta-1.0.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\nName: zeta\nVersion: 1.0\nRequires-Dist: alpha<1\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "RECORD").write_text("zeta-1.0.dist-info/INSTALLER,,\n", encoding="utf-8")


def _lost_dependency(yard: Yard) -> None:
    file = next(yard.site.glob("beta-*.dist-info")) / "METADATA"
    file.write_text(file.read_text(encoding="utf-8") + "Requires-Dist: nowhere-to-be-found\n", encoding="utf-8")


def _no_checkout(yard: Yard) -> None:
    shutil.rmtree(yard.checkout)


def _plain_folder(yard: Yard) -> None:
    shutil.rmtree(yard.checkout / ".git")


def _half_clone(yard: Yard) -> None:
    shutil.rmtree(yard.checkout / ".git" / "objects")
    (yard.checkout / ".git" / "objects").mkdir()


def _no_head(yard: Yard) -> None:
    (yard.checkout / ".git" / "HEAD").write_text("ref: refs/heads/nothing\n", encoding="utf-8")


def _other_commit(yard: Yard) -> None:
    yard.git("checkout", "-q", "--detach", "origin/main")


def _moved_tag(yard: Yard) -> None:
    yard.git("tag", "-f", "v1", "origin/main")


def _edited(yard: Yard) -> None:
    (yard.data / "Makefile").write_text("# edited\n" + (yard.data / "Makefile").read_text(encoding="utf-8"))


def _file_gone(yard: Yard) -> None:
    (yard.data / "helpers.cpp").unlink()


def _helpers(yard: Yard) -> Path:
    return next(yard.data.glob("helpers*.so"))


def _no_helpers(yard: Yard) -> None:
    _helpers(yard).unlink()


def _wrong_suffix(yard: Yard) -> None:
    _helpers(yard).rename(yard.data / f"helpers{FOREIGN}")


def _made_by_hand(yard: Yard) -> None:
    """What `make` does with another Python's python3-config first on PATH."""
    _helpers(yard).unlink()
    env = {**os.environ, **yard.variables}
    subprocess.run(["make", "-C", str(yard.data), "CPPFLAGS=" + _includes()], check=True, env=env, capture_output=True)
    assert (yard.data / f"helpers{FOREIGN}").exists()


def _includes() -> str:
    import sysconfig

    return f"-I{sysconfig.get_path('include')}"


def _no_suffix(yard: Yard) -> None:
    _helpers(yard).rename(yard.data / "helpers")


def _damaged_helpers(yard: Yard) -> None:
    _helpers(yard).write_bytes(b"\x7fELF and nothing more")


def _renamed_helpers(yard: Yard) -> None:
    """Another module under the right name: it has no PyInit_helpers."""
    right = _helpers(yard)
    source = yard.root / "other.c"
    source.write_text("int other(void) { return 1; }\n", encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(right), str(source)], check=True)


def _no_python_config(yard: Yard) -> None:
    (yard.env / "bin" / "python3-config").unlink()


def _stale_lock(yard: Yard) -> None:
    yard.build.mkdir(parents=True)
    (yard.build / "lock").touch()


def _stale_extension_lock(yard: Yard) -> None:
    folder = yard.extensions / "py311_cpu" / "fused_adam"
    folder.mkdir(parents=True)
    (folder / "lock").touch()


def _open_token(yard: Yard) -> None:
    token = yard.home / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("not-a-real-token", encoding="utf-8")
    token.chmod(0o644)


def _open_netrc(yard: Yard) -> None:
    yard.home.mkdir(exist_ok=True)
    (yard.home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password none\n", encoding="utf-8")
    (yard.home / ".netrc").chmod(0o644)


def _nccl(yard: Yard) -> None:
    yard.variables["NCCL_SOCKET_IFNAME"] = "nosuch0"


def _gloo(yard: Yard) -> None:
    yard.variables["GLOO_SOCKET_IFNAME"] = "nosuch0"


def _another_scheduler(yard: Yard) -> None:
    yard.variables |= {"SLURM_JOB_ID": "7", "NHOSTS": "2", "PE_HOSTFILE": "/nowhere"}


def _ascii(yard: Yard) -> None:
    yard.variables |= {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def _no_tmp(yard: Yard) -> None:
    yard.variables["TMPDIR"] = "/proc/ucllm-cannot-write-here"


FAULTS: Mapping[str, Fault] = {
    "no environment": Fault("env.python", broken._no_env, moves=False),
    "python is a dangling link": Fault("env.python", broken._dangling_python),
    "python fails": Fault("env.python", broken._failing_python),
    "python babbles": Fault("env.python", broken._babbling_python),
    "the environment is a file": Fault("env.python", broken._a_file),
    "the environment is a dangling link": Fault("env.python", broken._dangling_env),
    "no virtual environment": Fault("env.python", broken._not_a_venv),
    "interrupted venv": Fault("env.python", broken._interrupted_venv),
    "no pip": Fault("env.python", broken._no_pip, moves=False),
    "pip's metadata half written": Fault("env.python", broken._half_pip),
    "a package is missing": Fault("env.packages", broken._missing, moves=False),
    "a package of another version": Fault("env.packages", broken._another_version, moves=False),
    "a package without RECORD": Fault("env.packages", broken._without_record),
    "pip of another Python": Fault("env.pip", _shebang),
    "a foreign folder on the path": Fault("env.shadowing", _foreign_pth, "warn"),
    "a stray module hides a package": Fault("env.shadowing", _stray_module),
    "PYTHONPATH": Fault("env.variables", _pythonpath, "warn", fixable=False),
    "requirements in conflict": Fault("env.dependencies", _conflict, "warn", fixable=False),
    "a requirement that is not there": Fault("env.dependencies", _lost_dependency, fixable=False),
    "no checkout": Fault("source.megatron", _no_checkout, moves=False),
    "a folder that is no checkout": Fault("source.megatron", _plain_folder),
    "half a clone": Fault("source.megatron", _half_clone),
    "a clone without HEAD": Fault("source.megatron", _no_head),
    "another commit": Fault("source.megatron", _other_commit, moves=False),
    "a moved tag": Fault("source.megatron", _moved_tag, moves=False),
    "an edited file": Fault("source.megatron", _edited),
    "a tracked file is gone": Fault("source.megatron", _file_gone),
    "no helpers": Fault("build.helpers", _no_helpers, moves=False),
    "helpers of another suffix": Fault("build.helpers", _wrong_suffix, returns=False),
    "helpers made by hand in the wrong shell": Fault("build.helpers", _made_by_hand, returns=False),
    "helpers without suffix": Fault("build.helpers", _no_suffix, returns=False),
    "damaged helpers": Fault("build.helpers", _damaged_helpers),
    "another module as helpers": Fault("build.helpers", _renamed_helpers),
    "no python3-config": Fault("build.helpers", _no_python_config, "warn", moves=False),
    "a stale lock of the fused kernels": Fault("build.fused-kernels", _stale_lock),
    "a stale lock of torch_extensions": Fault("build.torch-extensions", _stale_extension_lock),
    "a token that others can read": Fault("credentials.huggingface", _open_token, "warn"),
    "a .netrc that others can read": Fault("credentials.wandb", _open_netrc, "warn"),
    "NCCL names an absent interface": Fault("machine.interfaces", _nccl, fixable=False),
    "GLOO names an absent interface": Fault("machine.interfaces", _gloo, fixable=False),
    "variables of another scheduler": Fault("machine.scheduler", _another_scheduler, "warn", fixable=False),
    "a locale without UTF-8": Fault("machine.locale", _ascii, fixable=False),
    "TMPDIR cannot be written": Fault("machine.tmp-exec", _no_tmp, fixable=False),
}


def test_the_workspace_is_healthy(yard: Yard) -> None:
    assert yard.problems() == {}


@pytest.mark.parametrize("name", FAULTS)
def test_detect_fix_detect_undo(yard: Yard, name: str) -> None:
    fault = FAULTS[name]
    fault.do(yard)
    seen = yard.problems()
    assert {key: value for key, value in seen.items() if value != "blocked"} == {fault.id: fault.status}
    fixed = yard("doctor", "--fix", "--yes", "--json")
    if not fault.fixable:
        assert yard.problems() == seen
        assert fixed.code == (1 if fault.status == "fail" else 0)
        return
    assert fixed.code == 0, fixed.out + fixed.err
    assert yard.problems() == {}
    if fault.moves:
        undone = yard("undo", fault.id, "--json")
        assert undone.code == 0
        assert all(os.path.lexists(item["to"]) for item in undone.json["data"]["put_back"])
        assert undone.json["data"]["put_back"]
        assert yard.problems().get(fault.id) == (fault.status if fault.returns else None)


def test_the_checkout_is_never_edited(yard: Yard) -> None:
    _made_by_hand(yard)
    assert yard("doctor", "--fix", "--yes").code == 0
    assert yard.git("status", "--porcelain", "--untracked-files=no") == ""


def test_the_helpers_stay_right_at_the_next_start(yard: Yard) -> None:
    """`pretrain_gpt.py` runs `make` in the active environment: with our python3-config it finds nothing to do."""
    env = {**os.environ, **yard.variables}
    env["PATH"] = f"{yard.env / 'bin'}:{env['PATH']}"
    done = subprocess.run(["make", "-C", str(yard.data)], env=env, check=True, capture_output=True, text=True)
    assert "Nothing to be done" in done.stdout
    assert [path.name for path in yard.data.glob("helpers*.so")] == [_helpers(yard).name]


@pytest.fixture
def builder(yard: Yard) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the build's lock open, as torch's does while it compiles."""
    yard.build.mkdir(parents=True)
    code = f"import time; f = open({str(yard.build / 'lock')!r}, 'w'); print(flush=True); time.sleep(120)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_live_lock_is_never_removed(yard: Yard, builder: subprocess.Popen[bytes]) -> None:
    assert yard.problems().get("build.fused-kernels") in ("warn", "unknown", "fail")
    yard("doctor", "--fix", "--yes")
    assert (yard.build / "lock").exists()
    assert builder.poll() is None
    builder.kill()
    builder.wait()
    assert yard("doctor", "--fix", "--yes").code == 0
    assert yard.problems() == {}
    assert not (yard.build / "lock").exists()


def test_a_busy_port_is_named(yard: Yard) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yard.variables["MASTER_PORT"] = str(taken.getsockname()[1])
        seen = yard.doctor()
    assert {key: value for key, value in seen.statuses.items() if value not in ("ok", "skipped")} == {
        "machine.port": "warn"
    }
    assert str(os.getpid()) in seen.out


def test_few_open_files(yard: Yard) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = yard.start("doctor", "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard)))
    out, _err = child.communicate(timeout=120)
    assert '"id": "machine.open-files", "status": "fail"' in out
    assert child.returncode == 1


def test_the_fix_of_another_profile_records_nothing(yard: Yard) -> None:
    assert yard("doctor", "--profile", "tiny", "--json").json["data"]["profile"]["name"] == "tiny"
    assert yard.doctor().json["data"]["profile"]["name"] == "yard"


def test_the_origin_is_what_the_profile_names(yard: Yard) -> None:
    assert yard.git("rev-parse", "HEAD") == git(yard.root / "origin", "rev-parse", "v1")
