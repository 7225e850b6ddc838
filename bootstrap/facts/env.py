"""Facts of the environment: one child of its own Python, which prints JSON and imports nothing heavy."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Dist, EnvFacts
from bootstrap.facts.collect import Request
from pipeline.i18n import _

#: Lies in an environment while it is being made: what has it was interrupted, whatever else it holds.
UNFINISHED = ".ucllm-unfinished"
PROBE = Path(__file__).parent / "probe.py"
TIMEOUT_S = 30.0


def collect(request: Request) -> EnvFacts:
    """Ask the environment's Python what is installed. One that cannot answer is ``broken``, with the reason."""
    return read(request.workspace.env)


def read(env: Path, *, timeout_s: float = TIMEOUT_S) -> EnvFacts:
    """The facts of the environment in ``env``."""
    python = env / "bin" / "python"
    if not os.path.lexists(env):  # no exception for what lies in a folder that may not be read
        return EnvFacts(str(env), "absent")
    if (env / UNFINISHED).exists():
        return EnvFacts(str(env), "broken", error=_("making it was interrupted"))
    try:
        done = host.capture((str(python), "-I", str(PROBE)), timeout_s=timeout_s)
    except (OSError, TimeoutError) as error:
        return EnvFacts(str(env), "broken", error=str(error))
    if done.code != 0:
        lines = done.stderr.strip().splitlines()
        return EnvFacts(str(env), "broken", error=lines[-1] if lines else f"exit {done.code}")
    try:
        data = json.loads(done.stdout)
        dists = {name: Dist(version, whole) for name, (version, whole) in data["dists"].items()}
        return EnvFacts(
            path=str(env),
            state="ready" if data["prefix"] != data["base_prefix"] else "broken",
            python=data["executable"],
            version=data["version"],
            extension_suffix=data["extension_suffix"],
            has_pip=bool(data["pip"]),
            dists=dists,
            error="" if data["prefix"] != data["base_prefix"] else _("it is not a virtual environment"),
        )
    except (ValueError, KeyError, TypeError) as error:
        return EnvFacts(str(env), "broken", error=_("its answer cannot be read: {error}").format(error=error))
