"""Are these nodes fit for one job together? The checks of ``doctor --hostfile``, for whoever is about to start it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bootstrap import requirements, runner
from bootstrap.facts.collect import collect
from bootstrap.facts.nodes import Job
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from bootstrap.workspace import Workspace


def findings(
    hosts: Sequence[tuple[str, int]],
    port: int,
    workspace: Workspace,
    profile: Profile,
    *,
    over: str = "ssh",
    ssh_config: Path | None = None,
    address: str = "",
) -> list[Finding]:
    """One finding for each id of :data:`bootstrap.requirements.NODES`, in that order.

    ``hosts`` are names with their slots, the first being where all processes meet at ``port``; ``address`` is how the
    others will be told to reach it (empty: by its name in ``hosts``). ``over`` is ``ssh`` (with ``ssh_config`` instead
    of the user's own) or ``srun``, which works inside the job only. Every node is logged in to once, and the port is
    held on the first node for as long: call it before anything of the job listens there. What cannot be asked is a
    finding; nothing is raised. It takes a few seconds, and up to 100 where nodes do not answer.
    """
    job = Job(tuple(hosts), port, over, ssh_config, address)
    wanted = requirements.load(requirements.NODES)
    sections = tuple(dict.fromkeys(name for item in wanted for name in item.reads))
    return runner.diagnose(profile, collect(profile, workspace, sections, job=job), wanted)
