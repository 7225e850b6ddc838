"""DeepSpeed's ops, apex, flash-attn and the C++ library: their checks, and the ELF facts on libraries built by g++."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from bootstrap import facts as f
from bootstrap import profiles
from bootstrap.facts import binaries, collect
from bootstrap.findings import FAIL, OK, SKIPPED, UNKNOWN, Finding
from bootstrap.requirements import load
from bootstrap.workspace import Workspace
from tests.faults.synthetic import ENV, SITE, SUFFIX, changed, l4_node

GCP = profiles.load("gcp-2024.02")
NODE = l4_node(GCP)
LIBRARY = f"{ENV}/lib/libstdc++.so.6"
OTHER = ".cpython-311-x86_64-linux-gnu.so"
IDS = ("env.libstdcxx", "ops.deepspeed", "ops.apex", "ops.flash-attn")
CXX = shutil.which("g++")
needs_cxx = pytest.mark.skipif(CXX is None, reason="there is no g++")
SOURCE = """
#include <string>
#include <vector>
namespace c10 { struct Error { explicit Error(%s); }; }
namespace at { int classSsl(int); }
int run(int n) { %s return at::classSsl(n); }
"""


def _check(id_: str, facts: f.Facts = NODE, profile: profiles.Profile = GCP) -> Finding:
    return load([id_])[0].check(profile, facts)


def _with(path: str, new: object) -> f.Facts:
    result: f.Facts = changed(NODE, path, new)
    return result


def _file(path: str, binary: f.Binary) -> f.Facts:
    return _with("binaries.files", {**NODE.binaries.files, path: binary})


@pytest.mark.parametrize("id_", IDS)
def test_healthy(id_: str) -> None:
    found = _check(id_)
    assert (found.status, found.remedy) == (OK, None)
    assert found.evidence


@pytest.mark.parametrize("id_", IDS[1:])
def test_a_profile_without_it(id_: str) -> None:
    assert _check(id_, profile=profiles.load("cpu")).status == SKIPPED


@pytest.mark.parametrize(
    ("provides", "compiler", "status"),
    [
        ("3.4.28", "10.2.1", OK),
        ("3.4.26", "10.2.1", FAIL),
        ("3.4.9", "4.8.5", FAIL),
        ("3.4.30", "13.2.0", OK),  # nvcc refuses it: what gcc 11 may ask for counts
        ("3.4.26", "", OK),
        ("3.4.25", "", FAIL),
        ("", "10.2.1", UNKNOWN),
    ],
)
def test_libstdcxx(provides: str, compiler: str, status: str) -> None:
    facts = _file(LIBRARY, f.Binary(provides=provides))
    facts = changed(facts, "tools.programs", {"g++": f.Program("/usr/bin/g++", compiler)} if compiler else {})
    found = _check("env.libstdcxx", facts)
    assert found.status == status
    assert bool(found.remedy) == (status == FAIL)


def test_libstdcxx_of_a_toolset_and_of_nowhere() -> None:
    old = _file(LIBRARY, f.Binary(provides="3.4.25"))
    toolset = changed(old, "tools.programs.g++.path", "/opt/rh/gcc-toolset-11/root/usr/bin/g++")
    assert _check("env.libstdcxx", toolset).status == OK
    assert _check("env.libstdcxx", _with("binaries", f.BinariesFacts())).status == UNKNOWN
    unread = _file(LIBRARY, f.Binary(error="Permission denied"))
    assert "Permission denied" in _check("env.libstdcxx", unread).evidence


def test_libstdcxx_without_cuda_follows_the_compiler() -> None:
    facts = _with("tools.programs.g++.version", "13.2.0")
    assert _check("env.libstdcxx", facts, profiles.load("megatron-cpu")).status == FAIL


def test_deepspeed_table_has_the_shape_of_ds_report() -> None:
    built = f.Deepspeed("0.12.4", {"fused_adam": True, "async_io": False}, {"fused_adam": True, "async_io": False})
    facts = _with("env.deepspeed", built)
    found = _check("ops.deepspeed", facts)
    assert found.status == FAIL
    assert any(line.startswith("op name ....") and line.endswith(" installed .. compatible") for line in found.evidence)
    rows = {line.split()[0]: line.split(". ", 1)[1] for line in found.evidence if "[" in line}
    assert rows["fused_adam"] == "[YES] ...... [OKAY]"
    assert rows["async_io"] == "[NO] ....... [NO]"
    assert set(GCP.deepspeed.ops if GCP.deepspeed else ()) <= set(rows)


def test_deepspeed_remedy_is_the_build_command() -> None:
    found = _check("ops.deepspeed", _with("env.deepspeed.installed.fused_adam", False))
    assert "fused_adam" in found.summary
    assert found.remedy
    assert found.remedy.commands[0].startswith("DS_BUILD_OPS=1 DS_BUILD_EVOFORMER_ATTN=0 DS_BUILD_SPARSE_ATTN=0 ")
    assert found.remedy.commands[0].endswith(" deepspeed==0.12.4")
    assert found.remedy.automatic


@pytest.mark.parametrize(
    ("path", "new", "status"),
    [
        ("env.dists", {}, FAIL),
        ("env.dists.deepspeed", f.Dist("0.14.0"), FAIL),
        ("env.dists.deepspeed", f.Dist("0.12.4+abc"), OK),
        ("env.deepspeed.torch", "2.1", FAIL),
        ("env.deepspeed.cuda", "12.1", FAIL),
        ("env.deepspeed.libraries", (f"{SITE}/deepspeed/ops/adam/fused_adam_op{OTHER}",), FAIL),
        ("env.deepspeed", None, UNKNOWN),
        ("env.deepspeed.torch", "", UNKNOWN),
    ],
)
def test_deepspeed(path: str, new: object, status: str) -> None:
    found = _check("ops.deepspeed", _with(path, new))
    assert found.status == status
    assert bool(found.remedy) == (status != OK)


def test_deepspeed_without_ops_is_judged_by_its_version_alone() -> None:
    profile = dataclasses.replace(profiles.load("megatron-cpu"), deepspeed=profiles.Deepspeed("0.12.4"))
    found = _check("ops.deepspeed", _with("env.deepspeed", None), profile)
    assert found.status == OK
    other = _check("ops.deepspeed", _with("env.dists.deepspeed", f.Dist("0.14.0")), profile)
    assert other.remedy
    # Said, because the user's shell may say otherwise.
    assert other.remedy.commands[0].startswith("DS_BUILD_OPS=0 ")


def test_apex() -> None:
    assert _check("ops.apex", _with("env.dists", {})).summary == "apex is not installed."
    assert "Python only" in _check("ops.apex", _with("env.extensions", {})).summary
    absent = {name: files for name, files in NODE.env.extensions.items() if name != "amp_C"}
    assert _check("ops.apex", _with("env.extensions", absent)).summary == "Not compiled: amp_C."
    foreign = _check("ops.apex", _with("env.extensions.apex_C", (f"{SITE}/apex_C{OTHER}",)))
    assert (foreign.status, foreign.summary) == (FAIL, "Built for another Python: apex_C.")
    assert foreign.remedy
    assert "--build-option=--cpp_ext" in foreign.remedy.commands[0]
    both = (f"{SITE}/apex_C{OTHER}", f"{SITE}/apex_C{SUFFIX}")
    assert _check("ops.apex", _with("env.extensions.apex_C", both)).status == OK
    assert _check("ops.apex", _with("env.extension_suffix", "")).status == UNKNOWN


@pytest.mark.parametrize(("id_", "module"), [("ops.apex", "apex_C"), ("ops.flash-attn", "flash_attn_2_cuda")])
def test_abi(id_: str, module: str) -> None:
    path = f"{SITE}/{module}{SUFFIX}"
    other = _file(path, f.Binary(abi="cxx11"))
    found = _check(id_, other)
    assert (found.status, f"{path}: ABI cxx11; torch: ABI old" in found.evidence) == (FAIL, True)
    # Where either is not known, nothing is said.
    assert _check(id_, changed(other, "env.torch.cxx11_abi", None)).status == OK
    assert _check(id_, _file(path, f.Binary())).status == OK
    assert _check(id_, _file(path, f.Binary(error="Permission denied"))).status == UNKNOWN


def test_flash_attn() -> None:
    assert _check("ops.flash-attn", _with("env.dists", {})).status == FAIL
    assert _check("ops.flash-attn", _with("env.dists.flash-attn", f.Dist("2.6.3"))).status == FAIL
    module = "env.extensions.flash_attn_2_cuda"
    assert _check("ops.flash-attn", _with(module, (f"{SITE}/flash_attn_2_cuda{OTHER}",))).status == FAIL
    assert _check("ops.flash-attn", _with("env.dists.flash-attn", f.Dist("2.5.0+cu118"))).status == OK


def _build(folder: Path, abi: int, taken: str = "const std::string&", body: str = 'throw c10::Error("x");') -> Path:
    """A library that wants a symbol of torch which takes ``taken``."""
    assert CXX
    source, library = folder / "x.cpp", folder / f"x{abi}.so"
    source.write_text(SOURCE % (taken, body), encoding="utf-8")
    flags = ("-shared", "-fPIC", "-fno-exceptions" if not body else "-O1", f"-D_GLIBCXX_USE_CXX11_ABI={abi}")
    subprocess.run((CXX, *flags, str(source), "-o", str(library)), check=True)
    return library


@needs_cxx
@pytest.mark.parametrize(("abi", "name"), [(0, "old"), (1, "cxx11")])
@pytest.mark.parametrize("taken", ["const std::string&", "std::string", "const std::vector<std::string>&"])
def test_the_abi_of_a_real_library(tmp_path: Path, abi: int, name: str, taken: str) -> None:
    body = "throw c10::Error({});" if "vector" in taken else 'throw c10::Error(std::string("x"));'
    found = binaries.read(str(_build(tmp_path, abi, taken, body)))
    assert found.abi == name, found
    assert "libstdc++.so.6" in found.needed
    assert (found.provides, found.error) == ("", "")


@needs_cxx
def test_a_library_without_strings_has_no_abi(tmp_path: Path) -> None:
    assert binaries.read(str(_build(tmp_path, 0, "int", "throw c10::Error(1);"))).abi == ""


@needs_cxx
def test_a_library_cut_off_anywhere_has_an_error_or_is_read(tmp_path: Path) -> None:
    whole = _build(tmp_path, 1).read_bytes()
    cut = tmp_path / "cut.so"
    for size in range(0, len(whole), max(1, len(whole) // 200)):
        cut.write_bytes(whole[:size])
        found = binaries.read(str(cut))
        assert found.error or found.needed, size


def test_names_of_symbols() -> None:
    assert binaries.abi_of(["_ZN3c106detail14torchCheckFailEPKcS2_jRKSs"]) == "old"
    assert binaries.abi_of(["_ZN5torch3jitL6parseEILb1EESt6vectorISsSaISsEE"]) == "old"
    assert binaries.abi_of(["_ZNKSs2atEm", "_ZNKSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE2atEm"]) == ""
    assert binaries.abi_of(["_ZN2at8classSslEi", "printf", "_ZNSs4_Rep9_S_createEmmRKSaIcE"]) == ""
    assert binaries.abi_of(["_ZN3c105ErrorC1ENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"]) == "cxx11"
    assert binaries.abi_of(["_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_createERmm"]) == ""


def test_where_libstdcxx_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conda, other = tmp_path / "env" / "lib", tmp_path / "other"
    for folder in (conda, other):
        folder.mkdir(parents=True)
        (folder / "libstdc++.so.6").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'absent'}:{other}")
    env = f.EnvFacts(str(tmp_path / "env"), "ready", kind="conda")
    assert binaries.find_libstdcxx(env) == str(conda / "libstdc++.so.6")
    assert binaries.find_libstdcxx(dataclasses.replace(env, kind="venv")) == str(other / "libstdc++.so.6")


@needs_cxx
def test_collect_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    library = str(_build(tmp_path, 1))
    env = f.EnvFacts(
        str(tmp_path),
        "ready",
        kind="venv",
        extensions={"apex_C": (library,), "unrelated": ("/nowhere/unrelated.so",)},
        deepspeed=f.Deepspeed("0.12.4", libraries=(f"{tmp_path}/absent.so",)),
    )
    request = collect.Request(GCP, Workspace(tmp_path), answers={"env": env})
    found = binaries.collect(request)
    assert set(found.files) == {library, f"{tmp_path}/absent.so", found.libstdcxx}
    assert found.files[library].abi == "cxx11"
    assert "absent.so" in found.files[f"{tmp_path}/absent.so"].error
    # g++ works here, so the library it links against is there.
    assert found.files[found.libstdcxx].provides.startswith("3.4.")
