"""The NVIDIA driver and its GPUs: asked of NVML where a driver is loaded, else read from the kernel module's files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bootstrap.facts import Gpu, GpuFacts
from bootstrap.facts.collect import Request
from bootstrap.facts.network import named

#: Compute capabilities by name, for where only the kernel module answers. NVIDIA's list of CUDA GPUs.
CAPABILITIES = {
    "V100": "7.0",
    "T4": "7.5",
    "A100": "8.0",
    "A30": "8.0",
    "A10": "8.6",
    "A10G": "8.6",
    "A40": "8.6",
    "RTX 3090": "8.6",
    "RTX A6000": "8.6",
    "RTX 4090": "8.9",
    "L4": "8.9",
    "L40": "8.9",
    "L40S": "8.9",
    "H100": "9.0",
    "H200": "9.0",
    "GH200": "9.0",
    "B200": "10.0",
}
#: NVML's reasons for a reduced clock that mean trouble (``nvmlClocksEventReasons`` in nvml.h).
TROUBLE = {0x8: "HW slowdown", 0x20: "SW thermal slowdown", 0x40: "HW thermal slowdown", 0x80: "HW power brake"}

#: What shows a driver whose files are hidden: the devices that a container is given, the library that WSL has.
ELSEWHERE = ("/dev/nvidiactl", "/usr/lib/wsl/lib/libnvidia-ml.so.1")


def collect(_request: Request) -> GpuFacts:
    """What the driver says of this machine. No driver is no error: then everything is empty."""
    return read(Path("/"))


def read(root: Path) -> GpuFacts:
    """The facts of the machine whose files lie under ``root``; NVML is asked only of the real one."""
    proc, module = root / "proc/driver/nvidia", root / "sys/module/nvidia"
    loaded = proc.is_dir() or module.is_dir()
    real = root == Path("/")
    if real and (loaded or any(map(os.path.exists, ELSEWHERE))):  # exists raises nothing for what may not be read
        try:
            return _nvml()
        except ImportError:  # it says nothing of the driver
            return _files(proc, module)
        except Exception as error:  # noqa: BLE001  pynvml raises its own classes, one for each of NVML's codes
            files = _files(proc, module)
            return GpuFacts("proc", files.driver, "", files.devices, str(error) or type(error).__name__)
    return _files(proc, module) if loaded else GpuFacts()


def _files(proc: Path, module: Path) -> GpuFacts:
    """What the kernel module tells by its files."""
    text = _text(proc / "version")
    found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)", text)
    driver = found[1] if found else _text(module / "version").strip()
    devices = []
    with contextlib.suppress(OSError):
        for folder in sorted((proc / "gpus").iterdir()):
            model = re.search(r"^Model:\s*(.+)$", _text(folder / "information"), re.MULTILINE)
            name = model[1].strip() if model else "NVIDIA GPU"
            devices.append(Gpu(name, capability_of(name)))
    return GpuFacts("proc" if driver or devices else "", driver, "", tuple(devices))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def capability_of(name: str) -> str:
    """The compute capability of a GPU by its name, empty if it is not in :data:`CAPABILITIES`."""
    words = re.split(r"[\s-]+", name)
    for known, capability in CAPABILITIES.items():
        if known in words or (" " in known and known in name):
            return capability
    return ""


def _nvml() -> GpuFacts:
    import pynvml

    pynvml.nvmlInit()
    try:
        driver, cuda = _as_text(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        devices = tuple(_device(pynvml, handle) for handle in handles)
    finally:
        pynvml.nvmlShutdown()
    return GpuFacts("nvml", driver, f"{cuda // 1000}.{cuda % 1000 // 10}", devices)


def _device(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    volatile = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    ecc = _or_none(lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, *volatile)))
    reasons = _or_none(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))) or 0
    return Gpu(
        name=_as_text(nvml.nvmlDeviceGetName(handle)),
        capability=f"{major}.{minor}",
        memory=_or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        memory_free=_or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).free)),
        ecc_errors=ecc,
        throttled=tuple(_names(reasons)),
        processes=_processes(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    """The programs that compute there, also of other users."""
    try:
        return tuple(named(item.pid) for item in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except Exception:  # noqa: BLE001  pynvml's own classes, as above
        return None


def _names(reasons: int) -> Iterator[str]:
    return (name for bit, name in TROUBLE.items() if reasons & bit)


def _or_none(ask: Callable[[], int]) -> int | None:
    """The answer, or ``None`` where this GPU does not support the question."""
    try:
        return ask()
    except Exception:  # noqa: BLE001  pynvml's own classes, as above
        return None


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
