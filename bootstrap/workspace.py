"""The workspace: the directory Step 0 fills, and our own ``.ucllm/`` in it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.runs import write_text_atomically

STATE = ".ucllm"


@dataclass(frozen=True)
class Workspace:
    """A workspace directory; it need not exist yet."""

    root: Path

    @property
    def state(self) -> Path:
        """Our own folder: record, journal, logs, backups, caches."""
        return self.root / STATE

    @property
    def env(self) -> Path:
        """The environment, ``.venv`` as in the seed."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.env / "bin" / "python"

    @property
    def output(self) -> Path:
        """Where recipes' runs go."""
        return self.root / "output"

    @property
    def backups(self) -> Path:
        """Where fixes move what stood in the way."""
        return self.state / "backups"

    def recorded_profile(self) -> str:
        """The profile that ``setup`` recorded here; empty if none."""
        try:
            record = json.loads((self.state / "workspace.json").read_text(encoding="utf-8"))
            return str(record["profile"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def record_profile(self, name: str) -> None:
        """Remember the profile that ``setup`` builds here."""
        record = {"workspace_version": 1, "profile": name}
        write_text_atomically(self.state / "workspace.json", json.dumps(record) + "\n")


def find(option: Path | None) -> Workspace:
    """``--workspace``, else ``UCLLM_WORKSPACE``, else the nearest parent that is one, else the seed's folder."""
    named = option or os.environ.get("UCLLM_WORKSPACE")
    if named:
        return Workspace(Path(named).absolute())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / STATE / "workspace.json").is_file():
            return Workspace(folder)
    return Workspace(Path.home() / "ucllm_nedo_dev" / "train")
