"""The workspace: the directory Step 0 fills, and our own ``.ucllm/`` in it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import write_text_atomically

STATE = ".ucllm"


@dataclass(frozen=True)
class Workspace:
    """A workspace directory; it need not exist yet.

    ``mirror`` is the folder or address that everything is fetched from; empty: from where it was published.
    """

    root: Path
    mirror: str = ""

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
        return self._recorded("profile")

    def recorded_mirror(self) -> str:
        """The mirror that ``setup`` recorded here; empty if none."""
        return self._recorded("mirror")

    def _recorded(self, key: str) -> str:
        file = self.state / "workspace.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            return str(record.get(key) or "")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return ""
        except OSError as error:  # what is recorded there must not be guessed
            what = _("Cannot read {path}.").format(path=file)
            raise UcllmError("workspace.unreadable", what, error.strerror or str(error)) from error
        except (ValueError, AttributeError, RecursionError):
            return ""

    def record(self, profile: str) -> None:
        """Remember the profile that ``setup`` builds here, and the mirror it builds from."""
        record = {"workspace_version": 1, "profile": profile, "mirror": self.mirror}
        write_text_atomically(self.state / "workspace.json", json.dumps(record) + "\n")

    def from_mirror(self, option: str | None) -> Workspace:
        """The workspace with its mirror: ``--mirror``, else ``UCLLM_MIRROR``, else the recorded one; empty for none."""
        named = option if option is not None else os.environ.get("UCLLM_MIRROR")
        chosen = named if named is not None else self.recorded_mirror()
        place = chosen if "://" in chosen or not chosen else str(Path(chosen).absolute())
        return dataclasses.replace(self, mirror=place)


def find(option: Path | None) -> Workspace:
    """``--workspace``, else ``UCLLM_WORKSPACE``, else the nearest parent that is one, else the seed's folder.

    Raises :class:`UcllmError` where the current directory was deleted: pip and others fail there, whatever is named.
    """
    try:
        here = Path.cwd()
    except OSError as error:
        what = _("The current directory does not exist any more.")
        hint = _("Change to another one with `cd`, and run the command again.")
        raise UcllmError("workspace.no-current-directory", what, hint=hint) from error
    named = option or os.environ.get("UCLLM_WORKSPACE")
    if named:
        if os.path.isfile(named):  # noqa: PTH113  as below
            what = _("{path} is a file, and no folder for a workspace.").format(path=named)
            raise UcllmError("usage", what, hint=_("Choose another with `--workspace DIR`."))
        return Workspace(Path(named).absolute())
    for folder in (here, *here.parents):
        if os.path.isfile(folder / STATE / "workspace.json"):  # noqa: PTH113  raises for nothing that may not be read
            return Workspace(folder)
    return Workspace(Path.home() / "ucllm_nedo_dev" / "train")
