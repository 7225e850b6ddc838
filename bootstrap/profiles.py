"""A profile says what must be true, as data: ``locks/<profile>/profile.toml`` and the lock files beside it."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UcllmError, did_you_mean
from pipeline.i18n import _
from pipeline.recipe import load_toml


@dataclass(frozen=True)
class Pin:
    """One locked package: ``name==version`` where the environment marker (may be empty) holds."""

    name: str
    version: str
    marker: str
    lock: str


@dataclass(frozen=True)
class TorchSource:
    """Where torch comes from: the CPU wheel by ``lock``, else the index's default wheel by ``default_lock``."""

    lock: str
    default_lock: str
    #: An index that serves the CPU wheels, tried when the configured one does not.
    cpu_index: str
    #: What the default wheel and its own dependencies cost.
    default_download_gb: float
    default_disk_gb: float


@dataclass(frozen=True)
class Profile:
    """What must be true. ``requirements`` are ids in the order of Step 0."""

    name: str
    description: str
    folder: Path
    recipe: str
    engines: Mapping[str, str]
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    pins: tuple[Pin, ...] = ()
    torch: TorchSource | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)

    def pins_for(self, python: str) -> list[Pin]:
        """The pins that hold for a ``3.12``-like Python on this kind of machine."""
        from packaging.markers import Marker

        environment = {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": platform.machine(),
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
        }
        return [pin for pin in self.pins if not pin.marker or Marker(pin.marker).evaluate(environment)]


def locks_dir() -> Path:
    """The ``locks`` folder: inside the installed package, else at the top of the checkout."""
    installed = Path(__file__).parent / "_locks"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "locks"


def profile_names() -> list[str]:
    """The profiles that come with ucllm."""
    return sorted(path.parent.name for path in locks_dir().glob("*/profile.toml"))


@functools.lru_cache(maxsize=8)
def load(name: str) -> Profile:
    """Load and validate a profile. Raises :class:`UcllmError` for an unknown name."""
    if name not in profile_names():
        raise UcllmError(
            "profile.unknown",
            _("There is no profile `{name}`.").format(name=name),
            hint=did_you_mean(name, profile_names()),
        )
    folder = locks_dir() / name
    data = load_toml(folder / "profile.toml")
    torch = TorchSource(**data["torch"]) if "torch" in data else None
    locks = [*data["packages"]["locks"], *([torch.lock] if torch else [])]
    return Profile(
        name=name,
        description=data["description"],
        folder=folder,
        recipe=data["recipe"],
        engines=data["engines"],
        requirements=tuple(data["requirements"]),
        pythons=tuple(data["python"]["versions"]),
        pins=tuple(pin for lock in locks for pin in read_lock(folder / lock)),
        torch=torch,
        sizes=data["packages"].get("sizes", {}),
    )


_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^\s;\\]+)\s*(;\s*(?P<marker>[^\\]+?))?\s*(\\)?$"
)


def read_lock(path: Path) -> list[Pin]:
    """The pins of a hash-locked requirements file, hashes left to pip."""
    pins = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _PIN.match(line)
        if match:
            pins.append(Pin(normalize(match["name"]), match["version"], (match["marker"] or "").strip(), path.name))
    return pins


def normalize(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def detect(facts_gpu: bool, scheduler: bool, cuda_torch: bool) -> tuple[str, str]:
    """The profile this machine looks made for, and why (DESIGN section 3)."""
    wanted = (
        ("host", cuda_torch, _("the active Python has torch with CUDA")),
        ("gcp-2024.02", facts_gpu or scheduler, _("there is an NVIDIA GPU or Slurm")),
        ("cpu", not (cuda_torch or facts_gpu or scheduler), _("there is no NVIDIA GPU")),
    )
    names = profile_names()
    for name, holds, reason in wanted:
        if holds and name in names:
            return name, reason
    return "cpu", _("it is the only profile that fits")
