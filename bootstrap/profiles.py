"""A profile says what must be true, as data: ``locks/<profile>/profile.toml`` and the lock files beside it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bootstrap import profile_kinds
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
    """Where torch comes from: the wheels of ``lock``, which only PyTorch's own ``index`` may have.

    Else the wheels of ``default_lock`` that every package index offers, where those will do: they cost more.
    """

    lock: str
    #: PyTorch's own list of wheels, looked at when the configured index has none of them.
    index: str
    default_lock: str = ""
    #: What the default wheel and its own dependencies cost.
    default_download_gb: float = 0
    default_disk_gb: float = 0

    @property
    def pip_options(self) -> tuple[str, ...]:
        """Lets pip look into ``index`` too, without waiting long where it cannot be reached."""
        return ("--find-links", self.index, "--retries", "0", "--timeout", "10")


@dataclass(frozen=True)
class Gpu:
    """A GPU to plan for where none can be seen, as on a login node. ``memory_gb`` is in 10^9 bytes."""

    name: str
    capability: str
    memory_gb: float
    count: int = 1


@dataclass(frozen=True)
class Needs:
    """What the machine must offer: ``disk_gb`` in the workspace, ``tmp_gb``, ``home_gb`` (10^9 bytes), ``glibc``.

    ``memory_gb`` is for the whole, ``memory_gb_per_job`` for each compiler that runs beside others; ``shm_gb`` for each
    GPU.
    """

    machines: tuple[str, ...] = ("x86_64", "aarch64")
    glibc: str = "2.17"
    disk_gb: float = 5
    tmp_gb: float = 1
    home_gb: float = 0
    memory_gb: float = 4
    memory_gb_per_job: float = 4
    shm_gb: float = 0
    open_files: int = 1024
    processes: int = 1024
    port: int = 29500


@dataclass(frozen=True)
class Cuda:
    """The CUDA toolkit that builds: ``driver`` is the oldest driver that runs it, ``newest_gcc`` what nvcc accepts.

    ``architectures`` are those nvcc compiles for (``80``). ``in_env``: it is part of the environment, not the system's.
    """

    version: str
    driver: str
    newest_gcc: int
    architectures: tuple[str, ...]
    in_env: bool = False


@dataclass(frozen=True)
class TorchBuild:
    """The torch that must be there: its version, the CUDA it was built for, and the architectures it has code for."""

    version: str
    cuda: str = ""
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conda:
    """Miniconda and the environment's conda packages, ``name`` to ``version=build`` (a build may be left out).

    ``channels`` are where packages are looked for, best first: names (``pytorch``, ``defaults``), addresses or paths.
    ``channel_of`` names the one channel that a package must come from (``nvidia/label/cuda-11.8.0::cuda-toolkit``).
    """

    version: str
    installer: str
    sha256: str
    packages: Mapping[str, str]
    channels: tuple[str, ...] = ()
    channel_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Deepspeed:
    """DeepSpeed: its version, the ops that must be built, and those the guide leaves out."""

    version: str
    ops: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Apex:
    """apex: the compiled modules it must have."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class FlashAttention:
    """flash-attn: its version and the least compute capability (``8.0``)."""

    version: str
    min_capability: str = "8.0"


@dataclass(frozen=True)
class Source:
    """A git checkout in the workspace: ``folder`` there, pinned to ``commit``; ``tag`` names it for people."""

    url: str
    folder: str
    tag: str
    commit: str


@dataclass(frozen=True)
class Window:
    """The versions of a package that the pinned sources work with, and why."""

    versions: str
    why: str


@dataclass(frozen=True)
class Profile:
    """What must be true. ``requirements`` are ids in the order of Step 0; the ``optional`` ones can at most warn.

    ``env_kind`` is ``venv``, ``conda`` or ``adopt`` (a Python of the user's that has torch). ``ranges`` are
    requirements as pip reads them, for a profile that adopts: its packages cannot be locked. Tables that a profile
    lacks are ``None``: it needs nothing of that kind. ``digests`` say of each lock file, by its name, what is in it.
    """

    name: str
    description: str
    folder: Path
    recipe: str
    engines: Mapping[str, str]
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    optional: tuple[str, ...] = ()
    env_kind: str = "venv"
    pins: tuple[Pin, ...] = ()
    ranges: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    torch: TorchSource | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    machine: Needs = Needs()
    gpu: Gpu | None = None
    cuda: Cuda | None = None
    torch_build: TorchBuild | None = None
    conda: Conda | None = None
    deepspeed: Deepspeed | None = None
    apex: Apex | None = None
    flash_attention: FlashAttention | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    windows: Mapping[str, Window] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on GPUs: it declares CUDA, or a torch that is built for it."""
        return self.cuda is not None or bool(self.torch_build and self.torch_build.cuda)

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
    """Load and validate a profile: one that comes with ucllm, or a folder of one's own (a path, with a ``/``).

    The name of a profile in a folder is its absolute path, so that a workspace that records it finds it again. Raises
    :class:`UcllmError` for an unknown name and for a file that is no profile.
    """
    if "/" in name:
        return _load(str(folder_of(name)), folder_of(name))
    if name not in profile_names():
        raise UcllmError(
            "profile.unknown",
            _("There is no profile `{name}`.").format(name=name),
            hint=did_you_mean(name, profile_names()),
        )
    return _load(name, folder_of(name))


def folder_of(name: str) -> Path:
    """Where a profile lies, or would: what has a ``/`` is a path."""
    if "/" in name:
        return Path(os.path.expanduser(name)).absolute()  # noqa: PTH111  Path's own raises for an unknown user
    return locks_dir() / name


def _load(name: str, folder: Path) -> Profile:
    path = folder / "profile.toml"
    try:
        if not path.is_file():
            raise UcllmError("profile.unknown", _("There is no profile in {folder}.").format(folder=folder), str(path))
        data = load_toml(path)
        wrong = profile_kinds.wrong(data, folder, _TABLES, _EACH)
        if wrong:
            raise UcllmError("profile.invalid", _("{path} is not a profile.").format(path=path), "; ".join(wrong))
        return _read(name, folder, data)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        why = _("{key} is missing").format(key=error) if isinstance(error, KeyError) else str(error)
        raise UcllmError("profile.invalid", _("{path} is not a profile.").format(path=path), why) from error


#: The tables that a profile may have, and those that hold tables, each under a name of its own.
_TABLES: Mapping[str, Callable[..., object]] = {
    "torch": TorchSource,
    "machine": Needs,
    "gpu": Gpu,
    "cuda": Cuda,
    "torch_build": TorchBuild,
    "conda": Conda,
    "deepspeed": Deepspeed,
    "apex": Apex,
    "flash_attention": FlashAttention,
}
_EACH: Mapping[str, type] = {"sources": Source, "windows": Window}


def _read(name: str, folder: Path, data: Mapping[str, Any]) -> Profile:
    torch = _table(TorchSource, data, "torch")
    packages = data.get("packages", {})
    locks = [*packages.get("locks", ()), *([torch.lock] if torch else [])]
    return Profile(
        name=name,
        description=data["description"],
        folder=folder,
        recipe=data["recipe"],
        engines=data["engines"],
        requirements=tuple(data["requirements"]),
        optional=tuple(data.get("optional", ())),
        pythons=tuple(data["python"]["versions"]),
        env_kind=data["python"].get("kind", "venv"),
        pins=tuple(pin for lock in locks for pin in read_lock(folder / lock)),
        ranges=tuple(packages.get("requirements", ())),
        digests={path.name: digest(path) for path in sorted(folder.glob("*.lock"))},
        torch=torch,
        sizes=packages.get("sizes", {}),
        machine=_table(Needs, data, "machine") or Needs(),
        gpu=_table(Gpu, data, "gpu"),
        cuda=_table(Cuda, data, "cuda"),
        torch_build=_table(TorchBuild, data, "torch_build"),
        conda=_table(Conda, data, "conda"),
        deepspeed=_table(Deepspeed, data, "deepspeed"),
        apex=_table(Apex, data, "apex"),
        flash_attention=_table(FlashAttention, data, "flash_attention"),
        sources={key: Source(**value) for key, value in data.get("sources", {}).items()},
        windows={key: Window(**value) for key, value in data.get("windows", {}).items()},
    )


T = TypeVar("T")


def _table(kind: Callable[..., T], data: Mapping[str, Any], name: str) -> T | None:
    """A table of the profile as its dataclass, lists as tuples; ``None`` if the profile has none."""
    if name not in data:
        return None
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data[name].items()})


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


def digest(path: Path) -> str:
    """What a lock file says, as a short text that changes with it: comments and empty lines do not count."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    said = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(said.encode()).hexdigest()[:12]


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
