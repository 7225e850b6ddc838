"""Faults that this machine cannot show, in composed facts: each gives its own finding, and only waiting ones beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bootstrap import facts as f
from bootstrap import profiles, requirements, runner
from bootstrap.findings import BLOCKED, FAIL, OK, SKIPPED, UNKNOWN, WARN
from bootstrap.requirements import SMOKE
from tests.faults.synthetic import ENV, GB, SITE, SUFFIX, WORKSPACE, changed, l4_node

OTHER_SUFFIX = ".cpython-311-x86_64-linux-gnu.so"


def _without(key: str) -> Any:
    return lambda table: {name: value for name, value in table.items() if name != key}


def _flag(key: str, *, value: bool) -> Any:
    return lambda table: {**table, key: value}


LOCK = f.Lock(f"{WORKSPACE}/lock", age_s=9000)
NO_DRIVER: Mapping[str, Any] = {"gpu": f.GpuFacts(), "machine.scheduler": "", "machine.variables": {}}
#: Name of the fault: the finding it must give, its status, and what is changed in the healthy facts.
FAULTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "old driver": ("machine.driver", FAIL, {"gpu.driver": "440.33.01", "gpu.cuda": "10.2"}),
    "no driver": ("machine.driver", FAIL, NO_DRIVER),
    "driver and library differ": (
        "machine.driver",
        FAIL,
        {"gpu.problem": "Driver/library version mismatch", "gpu.source": "proc", "gpu.devices": ()},
    ),
    "no GPU visible": ("machine.gpu", FAIL, {"gpu.devices": ()}),
    "T4": ("machine.gpu-arch", FAIL, {"gpu.devices.0": f.Gpu("Tesla T4", "7.5", 16 * GB, 15 * GB, 0)}),
    "K80": ("machine.gpu-arch", FAIL, {"gpu.devices.0": f.Gpu("Tesla K80", "3.7", 12 * GB, 11 * GB, 0)}),
    "ECC errors": ("machine.health", WARN, {"gpu.devices.0.ecc_errors": 12}),
    "other system": ("machine.system", FAIL, {"machine.machine": "ppc64le"}),
    "old C library": ("machine.system", FAIL, {"machine.libc": "glibc 2.12"}),
    "compiler too new": ("machine.compiler", FAIL, {"tools.programs.g++.version": "13.2.0"}),
    "no compiler": ("machine.compiler", FAIL, {"tools.programs": _without("g++")}),
    "no make": ("machine.build-tools", FAIL, {"tools.programs": _without("make")}),
    "no git": ("machine.build-tools", FAIL, {"tools.programs": _without("git")}),
    "no libaio header": ("machine.libaio", FAIL, {"tools.headers": {"libaio.h": ""}}),
    "no Python headers": ("machine.python-headers", FAIL, {"env.has_headers": False}),
    "little memory": ("machine.memory", FAIL, {"machine.memory_total": 1 * GB, "machine.memory_available": GB // 2}),
    "full disk": ("machine.disk", FAIL, {"machine.disks.workspace.free": 1 * GB}),
    "full TMPDIR": ("machine.disk-tmp", FAIL, {"machine.disks.tmp.free": GB // 100}),
    "TMPDIR noexec": ("machine.tmp-exec", FAIL, {"machine.disks.tmp.noexec": True}),
    "tiny /dev/shm": ("machine.shm", FAIL, {"machine.disks.shm.total": 64 << 20, "machine.disks.shm.free": 64 << 20}),
    "full /dev/shm": ("machine.shm", FAIL, {"machine.disks.shm.free": 1 << 20}),
    "few open files": ("machine.open-files", FAIL, {"machine.limits.open_files": 256}),
    "few processes": ("machine.processes", WARN, {"machine.limits.processes": 64}),
    "ASCII locale": ("machine.locale", FAIL, {"machine.encoding": "ascii"}),
    "port busy": ("machine.port", WARN, {"network.port_free": False, "network.port_owner": "123 (python)"}),
    "NCCL names an absent interface": ("machine.interfaces", FAIL, {"machine.variables.NCCL_SOCKET_IFNAME": "ib0"}),
    "GLOO names an absent interface": ("machine.interfaces", FAIL, {"machine.variables.GLOO_SOCKET_IFNAME": "eth7"}),
    "SGE variables under Slurm": ("machine.scheduler", WARN, {"machine.variables.NHOSTS": "2"}),
    "no Miniconda": ("env.miniconda", FAIL, {"conda.prefix": "", "conda.version": ""}),
    "no conda.sh": ("env.conda-activate", FAIL, {"conda.shell_hook": False}),
    "no environment": ("env.python", FAIL, {"env": f.EnvFacts(ENV, "absent")}),
    "broken environment": ("env.python", FAIL, {"env": f.EnvFacts(ENV, "broken", error="no such file")}),
    "another Python": ("env.python", FAIL, {"env.version": "3.11.5"}),
    "conda package missing": ("env.conda-packages", FAIL, {"conda.packages": _without("pytorch-cuda")}),
    "conda package that setup resolved is missing": (
        "env.conda-packages",
        FAIL,
        {"conda.solution": {"mkl": "2023.1.0=h213fc3f_46344"}},
    ),
    "conda packages resolved for an older profile": ("env.conda-packages", FAIL, {"conda.solution_stale": True}),
    "conda package of another version": ("env.conda-packages", FAIL, {"conda.packages.pytorch": "2.1.0=py3.9_cpu_0"}),
    "hook deleted": ("env.hooks", FAIL, {"conda.hooks": lambda hooks: hooks[1:]}),
    "hook with CRLF": ("env.hooks", FAIL, {"conda.hooks.0.text": lambda text: text.replace("\n", "\r\n")}),
    "hook not executable": ("env.hooks", FAIL, {"conda.hooks.0.executable": False}),
    "empty library path entry": ("env.library-path", WARN, {"machine.variables.LD_LIBRARY_PATH": f"{ENV}/lib:"}),
    "PYTHONPATH": ("env.variables", WARN, {"machine.variables.PYTHONPATH": "/home/user/old"}),
    "no nvcc": ("env.nvcc", FAIL, {"tools.programs": _without("nvcc"), "tools.user_nvcc": None}),
    "another nvcc": (
        "env.nvcc",
        FAIL,
        {"tools.user_nvcc": f.Program("/usr/local/cuda-12.2/bin/nvcc", "12.2.140")},
    ),
    "another torch": ("env.torch", FAIL, {"env.torch.version": "2.1.0", "env.dists.torch": f.Dist("2.1.0")}),
    "torch without CUDA": ("env.torch", FAIL, {"env.torch.cuda": ""}),
    "old libstdc++": (
        "env.libstdcxx",
        FAIL,
        {f"binaries.files.{ENV.replace('.', '::')}/lib/libstdc++::so::6": f.Binary(provides="3.4.22")},
    ),
    "package of another version": ("env.packages", FAIL, {"env.dists.transformers": f.Dist("4.57.0")}),
    "package missing": ("env.packages", FAIL, {"env.dists": _without("trl")}),
    "package half installed": ("env.packages", FAIL, {"env.dists.datasets.whole": False}),
    "requirements that conflict": (
        "env.dependencies",
        WARN,
        {"env.dists.zeta": f.Dist("1.0", requires=("transformers<4.20",))},
    ),
    "pip of another Python": ("env.pip", FAIL, {"env.pip_python": "/usr/bin/python3"}),
    "foreign folder on the path": ("env.shadowing", WARN, {"env.foreign_paths": ("/opt/old/site-packages",)}),
    "another DeepSpeed": (
        "ops.deepspeed",
        FAIL,
        {"env.deepspeed.version": "0.14.0", "env.dists.deepspeed": f.Dist("0.14.0")},
    ),
    "an op not built": ("ops.deepspeed", FAIL, {"env.deepspeed.installed": _flag("fused_adam", value=False)}),
    "ops for another torch": ("ops.deepspeed", FAIL, {"env.deepspeed.torch": "2.1"}),
    "apex without extensions": ("ops.apex", FAIL, {"env.extensions": _without("amp_C")}),
    "apex for another Python": ("ops.apex", FAIL, {"env.extensions.apex_C": (f"{SITE}/apex_C{OTHER_SUFFIX}",)}),
    "no flash-attn": (
        "ops.flash-attn",
        FAIL,
        {"env.dists": _without("flash-attn"), "env.extensions": _without("flash_attn_2_cuda")},
    ),
    "flash-attn with another ABI": (
        "ops.flash-attn",
        FAIL,
        {
            f"binaries.files.{SITE.replace('.', '::')}/flash_attn_2_cuda{SUFFIX.replace('.', '::')}": f.Binary(
                abi="cxx11"
            )
        },
    ),
    "Megatron absent": ("source.megatron", FAIL, {"sources.checkouts.megatron": f.Checkout(WORKSPACE, "absent")}),
    "Megatron half cloned": ("source.megatron", FAIL, {"sources.checkouts.megatron.state": "partial"}),
    "Megatron at another commit": ("source.megatron", FAIL, {"sources.checkouts.megatron.head": "0" * 40}),
    "Megatron's tag moved": ("source.megatron", FAIL, {"sources.checkouts.megatron.tag_commit": "1" * 40}),
    "Megatron edited": ("source.megatron", FAIL, {"sources.checkouts.megatron.changed": ("megatron/data/Makefile",)}),
    "apex at another commit": ("source.apex", FAIL, {"sources.checkouts.apex.head": "0" * 40}),
    "llm-jp-sft absent": ("source.llm-jp-sft", FAIL, {"sources.checkouts.llm-jp-sft": f.Checkout(WORKSPACE, "absent")}),
    "helpers for another Python": (
        "build.helpers",
        FAIL,
        {"builds.helpers.files": (f"helpers{OTHER_SUFFIX}",), "builds.helpers.loads": "no such file"},
    ),
    "helpers that do not load": (
        "build.helpers",
        FAIL,
        {"builds.helpers.loads": "ImportError: Python version mismatch"},
    ),
    "stale fused-kernels lock": ("build.fused-kernels", FAIL, {"builds.fused_kernels.lock": LOCK}),
    "fused kernels of another GPU": ("build.fused-kernels", FAIL, {"builds.fused_kernels.stamp.archs": "70"}),
    "fused kernels of another torch": ("build.fused-kernels", FAIL, {"builds.fused_kernels.stamp.torch": "2.1.0"}),
    "stale torch_extensions lock": (
        "build.torch-extensions",
        FAIL,
        {"builds.torch_extensions": (f.KernelBuild("/home/user/.cache/torch_extensions/py39_cu118/x", lock=LOCK),)},
    ),
    "token others can read": ("credentials.huggingface", WARN, {"access.huggingface.mode": "0644"}),
    ".netrc others can read": ("credentials.wandb", WARN, {"access.wandb.mode": "0644"}),
    "truncated corpus": (
        "data.corpus",
        FAIL,
        {"data.corpora": (f.Corpus("r", "/w/c_text_document", "/w/r/corpus", ("PREFIX.bin is too short",), True),)},
    ),
    "corpus of another tokenizer": (
        "data.corpus",
        FAIL,
        {"data.corpora": (f.Corpus("r", "/w/c_text_document", "/w/r/corpus", (), False),)},
    ),
    "batch that does not divide": (
        "data.recipe",
        FAIL,
        {"data.recipe.global_batch": 255, "data.recipe.micro_batch": 2},
    ),
    "torch does not import": ("env.imports", FAIL, {"deep.imports.torch": "ImportError: libcudart.so.11.0"}),
    "a conda package's file changed": (
        "env.conda-files",
        FAIL,
        {"deep.conda_changed": {"pytorch": (f"{SITE}/torch/version.py",)}},
    ),
    "a file changed": ("env.files", FAIL, {"deep.changed": {"trl": ("trl/__init__.py",)}}),
    "no code for this GPU": (
        "ops.device-code",
        FAIL,
        {"deep.device_code": {f"{SITE}/amp_C{SUFFIX}": ("sm_70",)}},
    ),
    "training fails": ("train.smoke", FAIL, {"smoke.error": "exit code 12", "smoke.loss": None}),
}


def _statuses(facts: f.Facts) -> dict[str, str]:
    profile = profiles.load("gcp-2024.02")
    found = runner.diagnose(profile, facts, requirements.load(profile.requirements), SMOKE)
    return {item.id: item.status for item in found}


def test_the_healthy_node_has_no_finding() -> None:
    profile = profiles.load("gcp-2024.02")
    found = runner.diagnose(profile, l4_node(profile), requirements.load(profile.requirements), SMOKE)
    assert [
        (item.id, item.status, item.summary, item.evidence) for item in found if item.status not in (OK, SKIPPED)
    ] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_gives_its_own_finding(name: str) -> None:
    wanted, status, changes = FAULTS[name]
    facts = l4_node(profiles.load("gcp-2024.02"))
    for path, new in changes.items():
        facts = changed(facts, path, new)
    statuses = _statuses(facts)
    wrong = {item: found for item, found in statuses.items() if found in (FAIL, WARN, UNKNOWN)}
    assert wrong == {wanted: status}


def test_without_git_the_checkouts_wait() -> None:
    facts = changed(l4_node(profiles.load("gcp-2024.02")), "tools.programs", _without("git"))
    statuses = _statuses(facts)
    assert {item: found for item, found in statuses.items() if item.startswith("source.")} == dict.fromkeys(
        ("source.megatron", "source.apex", "source.llm-jp-sft"), BLOCKED
    )
