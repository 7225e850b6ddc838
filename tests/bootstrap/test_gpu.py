"""Driver and GPUs: read from made-up files of a kernel module, and judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bootstrap import profiles
from bootstrap.facts import Disk, Facts, Gpu, GpuFacts, MachineFacts, gpu
from bootstrap.facts.collect import TIMEOUTS_S
from bootstrap.findings import Finding
from bootstrap.requirements import load
from bootstrap.requirements._gpu import visible_count

L4 = Gpu("NVIDIA L4", "8.9", 24 * 10**9, 23 * 10**9, 0)
HEALTHY = Facts(
    "/w",
    machine=MachineFacts(disks={"workspace": Disk("/w", inodes_free=10**7)}),
    gpu=GpuFacts("nvml", "535.129.03", "12.2", (L4,)),
    collected=tuple(TIMEOUTS_S),
)
LOGIN_NODE = dataclasses.replace(HEALTHY, gpu=GpuFacts(), machine=MachineFacts(scheduler="slurm"))


def _check(requirement: str, facts: Facts) -> Finding:
    finding = load([requirement])[0].check(profiles.load("gcp-2024.02"), facts)
    assert finding.evidence
    return finding


def _with(**gpu_facts: Any) -> Facts:
    return dataclasses.replace(HEALTHY, gpu=dataclasses.replace(HEALTHY.gpu, **gpu_facts))


def _seeing(value: str) -> Facts:
    machine = dataclasses.replace(HEALTHY.machine, variables={"CUDA_VISIBLE_DEVICES": value})
    return dataclasses.replace(HEALTHY, machine=machine)


@pytest.mark.parametrize("requirement", ["machine.driver", "machine.gpu", "machine.gpu-arch", "machine.health"])
def test_a_healthy_machine(requirement: str) -> None:
    assert _check(requirement, HEALTHY).status == "ok"


@pytest.mark.parametrize("requirement", ["machine.driver", "machine.gpu"])
def test_a_login_node_is_planned_for(requirement: str) -> None:
    found = _check(requirement, LOGIN_NODE)
    assert found.status == "skipped"
    assert "planning for NVIDIA L4" in found.summary


def test_the_declared_gpu_is_checked_on_a_login_node() -> None:
    assert _check("machine.gpu-arch", LOGIN_NODE).summary == "NVIDIA L4 (8.9)"


@pytest.mark.parametrize(
    ("requirement", "facts", "status", "words"),
    [
        ("machine.driver", dataclasses.replace(HEALTHY, gpu=GpuFacts()), "fail", "no NVIDIA driver"),
        ("machine.driver", _with(driver="470.82.01"), "fail", "too old for CUDA 11.8"),
        ("machine.driver", _with(driver="520.61.05"), "ok", "520.61.05"),
        ("machine.driver", _with(driver=""), "unknown", "could not be read"),
        ("machine.driver", _with(source="proc", problem="version mismatch"), "fail", "does not answer"),
        ("machine.gpu", _with(devices=()), "fail", "no GPU is visible"),
        ("machine.gpu", _seeing(""), "fail", "hides"),
        ("machine.gpu", _seeing("-1"), "fail", "hides"),
        ("machine.gpu", _seeing("0"), "ok", "L4"),
        ("machine.gpu", _seeing("7"), "fail", "hides"),
        ("machine.gpu", _seeing("NoDevFiles"), "fail", "hides"),
        ("machine.gpu", _seeing("GPU-1a2b"), "ok", "L4"),
        ("machine.gpu-arch", _with(devices=(Gpu("Tesla T4", "7.5"),)), "fail", "flash-attn"),
        ("machine.gpu-arch", _with(devices=(Gpu("Quadro K600", "3.0"),)), "fail", "torch, nvcc, flash-attn"),
        ("machine.gpu-arch", _with(devices=(Gpu("NVIDIA B200", "10.0"),)), "fail", "torch, nvcc"),
        ("machine.gpu-arch", _with(devices=(L4, Gpu("Tesla T4", "7.5"))), "fail", "T4"),
        ("machine.gpu-arch", _with(devices=(Gpu("NVIDIA Something", ""),)), "unknown", "could not be read"),
        ("machine.gpu-arch", _with(devices=()), "skipped", "no GPU"),
        ("machine.health", _with(devices=(dataclasses.replace(L4, ecc_errors=3),)), "warn", "memory errors"),
        ("machine.health", _with(devices=(dataclasses.replace(L4, throttled=("HW slowdown",)),)), "warn", "slowed"),
    ],
)
def test_what_is_wrong_is_said(requirement: str, facts: Facts, status: str, words: str) -> None:
    found = _check(requirement, facts)
    assert (found.status, words in found.summary) == (status, True), found.summary


@pytest.mark.parametrize("left", [0, 10])
def test_inodes_nearly_gone(left: int) -> None:
    machine = MachineFacts(disks={"workspace": Disk("/w", inodes_free=left)})
    found = _check("machine.health", dataclasses.replace(HEALTHY, machine=machine))
    assert (found.status, "inodes" in found.summary) == ("warn", True)


def test_without_nvml_the_kernel_modules_files_answer(tmp_path: Path) -> None:
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:00:03.0"
    folder.mkdir(parents=True)
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(version, encoding="utf-8")
    (folder / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 1\n", encoding="utf-8")
    assert gpu.read(tmp_path) == GpuFacts("proc", "535.129.03", "", (Gpu("NVIDIA L4", "8.9"),))


def test_the_module_alone_tells_the_version(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("550.54.15\n", encoding="utf-8")
    assert gpu.read(tmp_path) == GpuFacts("proc", "550.54.15")


def test_no_driver_is_no_error(tmp_path: Path) -> None:
    assert gpu.read(tmp_path) == GpuFacts()


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA A100-SXM4-40GB", "8.0"),
        ("Tesla T4", "7.5"),
        ("NVIDIA L40S", "8.9"),
        ("GeForce RTX 3090", "8.6"),
        ("X", ""),
    ],
)
def test_capabilities_by_name(name: str, capability: str) -> None:
    assert gpu.capability_of(name) == capability


@pytest.mark.parametrize(
    ("value", "count"), [("0,1", 2), ("1,0", 2), ("0,-1,1", 1), ("-1", 0), ("", 0), ("4,0", 0), ("MIG-1, GPU-2", 2)]
)
def test_what_cuda_visible_devices_leaves(value: str, count: int) -> None:
    assert visible_count(value, 4) == count


@pytest.mark.parametrize(
    ("problem", "needs"),
    [("Driver/library version mismatch", ("root", "restart")), ("NVML Shared Library Not Found", ("root",))],
)
def test_a_restart_is_asked_for_only_where_it_helps(problem: str, needs: tuple[str, ...]) -> None:
    remedy = _check("machine.driver", _with(source="proc", problem=problem)).remedy
    assert remedy is not None
    assert (remedy.needs, "Restart" in remedy.text) == (needs, "restart" in needs)


@pytest.mark.parametrize("requirement", ["machine.driver", "machine.gpu"])
def test_a_profile_that_names_no_gpu_can_do_without(requirement: str) -> None:
    bare = dataclasses.replace(profiles.load("gcp-2024.02"), gpu=None, cuda=None)
    facts = dataclasses.replace(HEALTHY, gpu=GpuFacts())
    assert load([requirement])[0].check(bare, facts).status == "skipped"
    assert load([requirement])[0].check(bare, HEALTHY).status == "ok"
    assert load([requirement])[0].check(bare, _with(devices=())).status == ("ok" if "driver" in requirement else "fail")


def test_cuda_11_7_has_no_code_for_hopper() -> None:
    profile = profiles.load("gcp-2024.02")
    assert profile.cuda is not None
    cuda = dataclasses.replace(profile.cuda, version="11.7", architectures=("70", "80", "86"))
    facts = _with(devices=(Gpu("NVIDIA H100 80GB HBM3", "9.0"),))
    found = load(["machine.gpu-arch"])[0].check(dataclasses.replace(profile, cuda=cuda), facts)
    assert (found.status, "nvcc" in found.summary) == ("fail", True)


def test_below_8_0_bfloat16_is_warned_of() -> None:
    profile = dataclasses.replace(profiles.load("gcp-2024.02"), flash_attention=None)
    found = load(["machine.gpu-arch"])[0].check(profile, _with(devices=(Gpu("Tesla T4", "7.5"),)))
    assert found.status == "warn"
    assert found.remedy is not None
    assert "fp16" in found.remedy.text
