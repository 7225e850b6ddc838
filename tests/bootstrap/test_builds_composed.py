"""The checks of what is built in place, on composed facts: healthy, broken, unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bootstrap import profiles
from bootstrap.facts import (
    BuildsFacts,
    Dist,
    EnvFacts,
    Facts,
    Gpu,
    GpuFacts,
    Helpers,
    KernelBuild,
    Lock,
    Program,
    ToolsFacts,
    Torch,
    builds,
    collect,
)
from bootstrap.profiles import Source
from bootstrap.requirements import load

ALL = tuple(collect.TIMEOUTS_S)
STAMP = {"torch": "2.2.0", "cuda": "11.8", "archs": "80,86,89", "python": "3.9"}
FUSED = KernelBuild("/w/M/build", ("/w/M/build/scaled_softmax_cuda.so",), stamp=STAMP)
HELPERS_FACTS = Helpers("/w/M/megatron/data", ("helpers.cpython-39.so",), make_suffix=".cpython-39.so")
HEALTHY = Facts(
    "/w",
    gpu=GpuFacts("nvml", "525", "12.2", (Gpu("L4", "8.9"),)),
    tools=ToolsFacts(programs={"nvcc": Program("/c/bin/nvcc", "11.8.89")}),
    env=EnvFacts(
        "/w/.venv",
        "ready",
        version="3.9.18",
        extension_suffix=".cpython-39.so",
        dists={"megatron-core": Dist("0.2.0")},
        torch=Torch("2.2.0+cu118", "11.8"),
    ),
    builds=BuildsFacts(HELPERS_FACTS, FUSED, (dataclasses.replace(FUSED, path="/t/py39_cu118/op"),), "/t"),
    collected=ALL,
)
PROFILE = dataclasses.replace(profiles.load("cpu"), sources={"megatron": Source("/o", "M", "v", "a" * 40)})


def _build(build: KernelBuild | None) -> Facts:
    others = () if build is None else (dataclasses.replace(build, path="/t/py39_cu118/op"),)
    return dataclasses.replace(HEALTHY, builds=BuildsFacts(HELPERS_FACTS, build, others, "/t"))


def _helpers(**changes: object) -> Facts:
    helpers = dataclasses.replace(HELPERS_FACTS, **changes)  # type: ignore[arg-type]  # a test's own values
    return dataclasses.replace(HEALTHY, builds=dataclasses.replace(HEALTHY.builds, helpers=helpers))


def _env(**changes: object) -> Facts:
    env = dataclasses.replace(HEALTHY.env, **changes)  # type: ignore[arg-type]  # a test's own values
    return dataclasses.replace(HEALTHY, env=env)


def _gpu(capability: str) -> Facts:
    return dataclasses.replace(HEALTHY, gpu=GpuFacts("nvml", devices=(Gpu("x", capability),)))


def _stamped(**changes: str) -> Facts:
    return _build(dataclasses.replace(FUSED, stamp={**STAMP, **changes}))


def _locked(lock: Lock) -> Facts:
    return _build(dataclasses.replace(FUSED, lock=lock))


KERNELS: list[tuple[Facts, str]] = [
    (HEALTHY, "ok"),
    (_build(None), "ok"),
    (_build(KernelBuild("/w/M/build")), "ok"),
    (_build(KernelBuild("/w/M/build", error="Permission denied")), "unknown"),
    (_locked(Lock("/l")), "fail"),
    (_locked(Lock("/l", waiters=(7,))), "fail"),
    (_locked(Lock("/l", owners=(7,), waiters=(8,))), "warn"),
    (_locked(Lock("/l", elsewhere=True)), "unknown"),
    (_locked(Lock("/l", elsewhere=True, owners=(7,))), "warn"),
    (_gpu("8.0"), "ok"),
    (_gpu("8.7"), "ok"),  # code for 8.6 runs on it
    (_gpu("9.0"), "fail"),
    (_gpu("7.5"), "fail"),
    (dataclasses.replace(_stamped(archs="80+PTX"), gpu=GpuFacts("nvml", devices=(Gpu("x", "9.0"),))), "ok"),
    (_stamped(cuda="12.1"), "fail"),
    (_stamped(torch="2.1.0"), "fail"),
    (_stamped(python="3.10"), "fail"),
    (dataclasses.replace(HEALTHY, tools=ToolsFacts(), gpu=GpuFacts()), "ok"),
]


@pytest.mark.parametrize("name", ["build.fused-kernels", "build.torch-extensions"])
@pytest.mark.parametrize(("facts", "status"), KERNELS)
def test_composed_kernels(facts: Facts, status: str, name: str) -> None:
    finding = load([name])[0].check(PROFILE, facts)
    assert finding.status == status, finding
    if status == "fail":
        assert finding.remedy
        assert finding.remedy.automatic
        assert finding.remedy.commands


@pytest.mark.parametrize(
    ("name", "facts", "status"),
    [
        ("build.helpers", HEALTHY, "ok"),
        ("build.helpers", _helpers(loads="boom"), "fail"),
        ("build.helpers", _helpers(files=(), loads="none"), "fail"),
        ("build.helpers", _helpers(files=("helpers.cpython-311.so",), loads="none"), "fail"),
        ("build.helpers", _helpers(make_suffix=".cpython-311.so"), "warn"),
        ("build.helpers", _helpers(stale=True), "warn"),
        ("build.helpers", _helpers(stale=True, make_suffix=""), "fail"),
        ("build.helpers", _env(extension_suffix=""), "unknown"),
        ("build.helpers", dataclasses.replace(HEALTHY, builds=BuildsFacts()), "unknown"),
        ("build.megatron", HEALTHY, "ok"),
        ("build.megatron", _env(dists={}, foreign_paths=("/w/M",)), "ok"),
        ("build.megatron", _env(dists={}), "fail"),
    ],
)
def test_composed(name: str, facts: Facts, status: str) -> None:
    assert load([name])[0].check(PROFILE, facts).status == status


def test_extensions_below_torchs_own_root(tmp_path: Path) -> None:
    for name in ("py39_cu118/fused_adam", "py311_cu121/fused_adam"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "lock").touch()
    env = EnvFacts("/w/.venv", "ready", version="3.9.18", torch=Torch("2.2.0", "11.8"))
    found = builds.read_extensions(tmp_path, env)
    assert len(found) == 2
    facts = dataclasses.replace(HEALTHY, builds=BuildsFacts(torch_extensions=found))
    finding = load(["build.torch-extensions"])[0].check(profiles.load("cpu"), facts)
    assert finding.status == "fail"
    assert "py311" not in str(finding)
