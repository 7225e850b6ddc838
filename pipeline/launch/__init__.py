"""How a launch reaches the machines: clusters as data, the nodes of a job, the files and commands that start on them.

Nothing here starts anything but :mod:`pipeline.launch.batch`'s submission: engines build a :class:`Launch`, the stage's
process starts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config import ParallelConfig
    from pipeline.launch.cluster import Cluster


@dataclass(frozen=True)
class Launch:
    """Exactly what is started: argv, the variables set on top of the user's, and the files written first.

    ``files`` maps a name in the folder ``launch/`` of the run directory to its content.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Machines:
    """Where a stage would run.

    ``hosts`` are the nodes of the job, or placeholders (``node-0``) outside one; ``slots`` processes run on each, one a
    GPU. ``device`` is ``cuda`` or ``cpu``, ``gpu`` the GPU's name; ``memory`` is bytes for one process, 0 where
    unknown; ``gpus_here`` those of this machine, 0 where they were not seen. ``job_id`` is the scheduler's, empty
    outside a job; ``port`` the one where the processes meet. ``compat`` is ``v0.3`` or ``v0.71`` for
    the published launch instead of ours. ``workspace`` holds the checkouts; ``python`` is the environment's.
    ``extension_suffix`` is that of the environment's compiled modules (``.cpython-39-x86_64-linux-gnu.so``).
    """

    cluster: Cluster
    hosts: tuple[str, ...]
    slots: int
    device: str
    port: int
    workspace: Path
    python: Path
    extension_suffix: str
    job_id: str = ""
    memory: int = 0
    gpu: str = ""
    gpus_here: int = 0
    compat: str = ""

    @property
    def world_size(self) -> int:
        """Processes in all, one a GPU."""
        return len(self.hosts) * self.slots

    def data_parallel(self, parallel: ParallelConfig) -> int:
        """Copies of the model that train side by side, at least one."""
        return max(1, self.world_size // (parallel.tp * parallel.pp))
