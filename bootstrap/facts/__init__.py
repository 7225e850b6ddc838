"""What is true, collected once, read-only, as JSON. Collectors are the only readers of the machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

FACTS_VERSION = 1


@dataclass(frozen=True)
class Interpreter:
    """A Python that an environment could be made from. ``version`` is ``3.12.1``-like."""

    path: str
    version: str


@dataclass(frozen=True)
class HostFacts:
    """The machine. Sizes are bytes; ``None`` means that it could not be read, and ``errors`` says why."""

    system: str = ""
    machine: str = ""
    cores: int | None = None
    memory_available: int | None = None
    disk_free: int | None = None
    workspace_writable: bool | None = None
    interpreters: tuple[Interpreter, ...] = ()
    nvidia_driver: bool = False
    scheduler: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dist:
    """An installed distribution. ``whole`` is false when pip was interrupted while it copied it."""

    version: str
    whole: bool = True


@dataclass(frozen=True)
class EnvFacts:
    """The environment, read by one child of its own Python. ``state``: ``absent``, ``broken`` or ``ready``."""

    path: str
    state: str
    python: str = ""
    version: str = ""
    extension_suffix: str = ""
    has_pip: bool = False
    dists: dict[str, Dist] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything the checks may look at."""

    workspace: str
    host: HostFacts
    env: EnvFacts
    facts_version: int = FACTS_VERSION

    def as_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        return dataclasses.asdict(self)
