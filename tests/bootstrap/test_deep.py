"""The deep tier: real imports, real hashes, real nvcc; and its checks on composed facts."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap import profiles
from bootstrap.facts import DeepFacts, Dist, EnvFacts, Facts, Gpu, GpuFacts, Torch, deep, device_code
from bootstrap.facts.collect import DEEP_TIMEOUTS_S, TIMEOUTS_S
from bootstrap.findings import FAIL, OK, SKIPPED, UNKNOWN
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Apex
from bootstrap.requirements import env_files, env_imports, ops_device_code
from bootstrap.requirements._gpu import runs
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Tiny
from tests.bootstrap.wheels import build

CPU = profiles.load("cpu")
HEALTHY = Facts(
    "/w",
    gpu=GpuFacts("nvml", "535", "12.2", (Gpu("L4", "8.9"),)),
    env=EnvFacts("/w/.venv", "ready", python="/w/p", version="3.11.7", torch=Torch("2"), dists={"trl": Dist("1.0")}),
    deep=DeepFacts({"torch": ""}, checked=9, device_code={"/s/amp_C.so": ("sm_80", "sm_90")}, seconds={"torch": 1.5}),
    collected=(*TIMEOUTS_S, *DEEP_TIMEOUTS_S),
)


def _deep(**changes: Any) -> Facts:
    return dataclasses.replace(HEALTHY, deep=dataclasses.replace(HEALTHY.deep, **changes))


def test_imports_check() -> None:
    assert env_imports.check(CPU, HEALTHY).status == OK
    broken = env_imports.check(CPU, _deep(imports={"torch": "ImportError: libfoo.so: cannot open"}))
    assert (broken.status, "libfoo" in broken.evidence[1]) == (FAIL, True)
    assert env_imports.check(CPU, _deep(imports={})).status == UNKNOWN
    no_torch = dataclasses.replace(HEALTHY, env=dataclasses.replace(HEALTHY.env, torch=None))
    assert env_imports.check(CPU, no_torch).status == SKIPPED


def test_files_check() -> None:
    assert env_files.check(CPU, HEALTHY).status == OK
    assert env_files.check(CPU, _deep(checked=None)).status == UNKNOWN
    assert env_files.check(CPU, _deep(unread=("/s/x: Permission denied",))).status == UNKNOWN
    for kind in ("changed", "missing"):
        found = env_files.check(CPU, _deep(**{kind: {"trl": ("/s/trl/x.py",)}}))
        assert found.status == FAIL
        assert found.remedy
        assert found.remedy.automatic
        assert any(kind in line and "/s/trl/x.py" in line for line in found.evidence)
    torch = env_files.check(CPU, _deep(changed={"torch": ("/s/torch/x.py",)}))
    assert torch.remedy
    assert not torch.remedy.automatic, "its wheel comes from several places"
    foreign = _deep(changed={"mine": ("/s/mine.py",)})
    assert env_files.plan(CPU, foreign, Workspace(Path("/w"))) == []


@pytest.mark.parametrize(
    ("archs", "status"),
    [
        (("sm_80",), OK),
        (("sm_89",), OK),
        (("compute_70",), OK),
        (("sm_90",), FAIL),
        (("sm_75", "compute_90"), FAIL),
        (("sm_90a", "compute_80a"), FAIL),
        ((), UNKNOWN),
    ],
)
def test_device_code_check(archs: tuple[str, ...], status: str) -> None:
    assert ops_device_code.check(CPU, _deep(device_code={"/s/amp_C.so": archs})).status == status


def test_device_code_without_a_gpu_or_libraries() -> None:
    assert ops_device_code.check(CPU, dataclasses.replace(HEALTHY, gpu=GpuFacts())).status == SKIPPED
    assert ops_device_code.check(CPU, _deep(device_code={})).status == SKIPPED
    nameless = dataclasses.replace(HEALTHY, gpu=GpuFacts("proc", devices=(Gpu("X"),)))
    assert ops_device_code.check(CPU, nameless).status == UNKNOWN
    assert runs((10, 3), "sm_100f")
    assert not runs((9, 0), "sm_100")


NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc on the PATH")
@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("80:sm_80",), ("sm_80",)),
        (("80:sm_80", "90:sm_90", "90:compute_90"), ("compute_90", "sm_80", "sm_90")),
        (("90:compute_90",), ("compute_90",)),
        (("90a:sm_90a",), ("sm_90a",)),
    ],
)
def test_device_code_of_real_nvcc(tmp_path: Path, codes: tuple[str, ...], expected: tuple[str, ...]) -> None:
    source, library = tmp_path / "k.cu", tmp_path / "k.so"
    source.write_text("__global__ void twice(float *a) { a[threadIdx.x] *= 2; }\n", encoding="utf-8")
    options = [f"-gencode=arch=compute_{item.split(':')[0]},code={item.split(':')[1]}" for item in codes]
    made = subprocess.run(
        [str(NVCC), "-shared", "-Xcompiler", "-fPIC", *options, "-o", str(library), str(source)],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"this nvcc cannot compile that: {made.stderr.strip()[-200:]}")
    assert device_code.read(library) == expected
    cut = tmp_path / "cut.so"
    cut.write_bytes(library.read_bytes()[:400_000])
    assert device_code.read(cut) == ()


def test_a_library_without_device_code(tmp_path: Path) -> None:
    assert device_code.read(Path(os.path.realpath(sys.executable))) is None
    (tmp_path / "x.so").write_text("no ELF", encoding="utf-8")
    assert device_code.read(tmp_path / "x.so") == ()
    assert device_code.read(tmp_path / "absent.so") == ()


def test_what_is_imported_and_read_follows_the_profile() -> None:
    assert deep.modules(CPU, HEALTHY.env) == ["torch"]
    guide = profiles.load("gcp-2024.02")
    assert deep.modules(guide, HEALTHY.env) == ["torch", "transformers", "deepspeed", "apex", "flash_attn"]
    extensions = {"amp_C": ("/s/amp_C.cpython-39.so", "/s/amp_C.cpython-311.so"), "other": ("/s/other.cpython-39.so",)}
    env = dataclasses.replace(HEALTHY.env, extension_suffix=".cpython-39.so", extensions=extensions)
    apex = dataclasses.replace(CPU, apex=Apex(("amp_C",)))
    assert deep.libraries(apex, env, HEALTHY.builds) == ["/s/amp_C.cpython-39.so"]


def test_imports_of_real_modules(healthy: Tiny) -> None:
    (healthy.site / "noisy.py").write_text("print('hello')\n", encoding="utf-8")
    (healthy.site / "broken.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    (healthy.site / "deadly.py").write_text("import os; os.kill(os.getpid(), 9)\n", encoding="utf-8")
    python = str(healthy.env / "bin" / "python")
    errors, seconds = deep.import_all(python, ["noisy", "broken", "deadly", "alpha"])
    assert errors["noisy"] == ""
    assert errors["broken"] == "ModuleNotFoundError: No module named 'nowhere_at_all'"
    assert "ended while importing it" in errors["deadly"]
    assert errors["alpha"] == "", "tried in another process"
    assert seconds.keys() == {"noisy", "broken", "alpha"}
    assert not list(healthy.site.glob("__pycache__/noisy*")), "read-only"


def test_files_on_a_real_environment(healthy: Tiny) -> None:
    """Break, detect, fix, detect again, undo."""
    workspace, python = Workspace(healthy.workspace), str(healthy.env / "bin" / "python")
    profile = dataclasses.replace(
        CPU, folder=healthy.lock, pins=tuple(profiles.read_lock(healthy.lock / "requirements.lock"))
    )

    def facts() -> Facts:
        answer = deep.compare_files(python)
        answer.pop("seconds")
        env = dataclasses.replace(HEALTHY.env, version=".".join(map(str, sys.version_info[:3])), python=python)
        return dataclasses.replace(HEALTHY, env=env, deep=DeepFacts(**answer))

    assert env_files.check(profile, facts()).status == OK
    module = healthy.site / "alpha.py"
    whole = module.read_bytes()
    module.write_bytes(whole + b"edited = True\n")
    (healthy.env / "bin" / "alpha-cli").unlink()
    broken = facts()
    assert broken.deep.changed == {"alpha": (str(module),)}
    assert broken.deep.missing.keys() == {"alpha"}
    assert env_files.check(profile, broken).status == FAIL

    journal = Journal(workspace)
    number = journal.next_fix()  # setup has written there before
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(healthy.root / "wheels"))
        for action in env_files.plan(profile, broken, workspace):
            action.act(Recorder(journal, number, "env.files", print))
    assert module.read_bytes() == whole
    assert (healthy.env / "bin" / "alpha-cli").exists()
    assert env_files.check(profile, facts()).status == OK
    undo(journal, fixes(journal)[-1])
    assert b"edited" in module.read_bytes()


def test_one_file_of_two_distributions_is_not_changed(healthy: Tiny) -> None:
    """Whichever was installed last wrote it."""
    build(healthy.root / "more", "alpha", "9.0", text="another")
    other = healthy.site / "other-1.0.dist-info"
    other.mkdir()
    wrong = "sha256=" + "A" * 43
    (other / "RECORD").write_text(f"alpha.py,{wrong},3\nalpha.cpython-311.pyc,{wrong},3\n", encoding="utf-8")
    python = str(healthy.env / "bin" / "python")
    assert deep.compare_files(python)["changed"] == {}
    (other / "RECORD").write_text(f"../gone.txt,,\nother.py,{wrong},3\n", encoding="utf-8")
    assert deep.compare_files(python)["missing"].keys() == {"other"}
    (other / "INSTALLER").write_text("conda\n", encoding="utf-8")
    assert deep.compare_files(python)["missing"] == {}


@pytest.mark.env
def test_the_real_environment_is_whole(env_python: Path) -> None:
    answer = deep.compare_files(str(env_python))
    assert (answer["changed"], answer["missing"], answer["unread"]) == ({}, {}, ())
    assert answer["checked"] > 1000
    assert deep.import_all(str(env_python), ["torch"])[0] == {"torch": ""}
