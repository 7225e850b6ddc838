"""Workspaces that setup makes of the local conda channel, and what is done with them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.bootstrap import conda_channel
from tests.bootstrap.conftest import Outcome, Tiny


def write(root: Path, made: Path, *, base: str = "", installer: str = "") -> Tiny:
    """The profile in ``root``: its channel is a copy of the one in ``made``, reached as ``base`` if that is given."""
    shutil.copytree(made / "channel", root / "channel")
    shutil.copy(made / "standin_miniconda.sh", root)
    script = root / "standin_miniconda.sh"
    (root / "profile").mkdir()
    conda_channel.write_profile(
        root / "profile",
        root / "wheels",
        channel=base or "../channel",
        installer=installer or script.as_uri(),
        sha256=hashlib.sha256(script.read_bytes()).hexdigest(),
    )
    return Tiny(root)


def setup(tiny: Tiny, *args: str) -> Outcome:
    return tiny("setup", "--profile", str(tiny.root / "profile"), "--yes", "--json", *args)


def run(tiny: Tiny, code: str) -> str:
    argv = [str(tiny.env / "bin" / "python"), "-c", code]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
