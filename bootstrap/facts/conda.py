"""Facts of Miniconda and of conda packages, read from files: starting ``conda`` itself would take a second."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from bootstrap import conda
from bootstrap.facts import CondaFacts, Hook
from bootstrap.facts.collect import Request
from bootstrap.facts.env import UNFINISHED

#: The hooks of Step 0-2, under the names the guide gives them, below ``etc/conda`` of the environment.
ACTIVATE = "activate.d/edit_environment_variable.sh"
DEACTIVATE = "deactivate.d/rollback_environment_variable.sh"
#: A hook is a few lines; of what is longer, this many bytes say enough.
HOOK_BYTES = 64 * 1024
#: An assignment whose value may be a secret.
_SECRET = re.compile(r"(?im)^(.*(?:KEY|TOKEN|SECRET|PASS)\w*=).*$")
_RECORD = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-(?P<build>[^-]+)\.json")


def collect(request: Request) -> CondaFacts:
    """Look for Miniconda, for what is installed in the workspace's environment, and for what setup resolved."""
    found = read(request.workspace.env, roots(request.workspace.root))
    solution = conda.load(conda.solution_file(request.workspace)) if request.profile.conda else None
    if solution is None:
        return found
    return dataclasses.replace(
        found,
        solution=solution.pins,
        solution_locked=solution.locked,
        solution_stale=solution.inputs != conda.inputs(request.profile),
    )


def roots(workspace: Path) -> list[Path]:
    """Where Miniconda may be, best first: the one that is in use, the workspace's own, the guide's place."""
    found = [workspace / "miniconda3", Path.home() / "miniconda3"]
    in_use = os.environ.get("CONDA_EXE", "")
    return [Path(in_use).parent.parent, *found] if in_use else found


def read(env: Path, looked_in: list[Path]) -> CondaFacts:
    """The facts of the first Miniconda among ``looked_in`` and of the environment ``env``."""
    # os.path: unlike Path's own methods these do not raise for what lies in a folder that may not be read.
    prefix = next((root for root in looked_in if _is_whole(root)), None)
    return CondaFacts(
        prefix=str(prefix or ""),
        version=packages(prefix).get("conda", "").partition("=")[0] if prefix else "",
        shell_hook=os.path.exists(prefix / "etc/profile.d/conda.sh") if prefix else None,  # noqa: PTH110
        looked_in=tuple(dict.fromkeys(str(root) for root in looked_in)),
        packages=packages(env),
        hooks=_hooks(env / "etc" / "conda"),
    )


def _is_whole(root: Path) -> bool:
    """Whether a Miniconda is there, and not one whose installer was interrupted."""
    return os.path.exists(root / "bin" / "conda") and not os.path.exists(root / UNFINISHED)  # noqa: PTH110


def packages(prefix: Path) -> dict[str, str]:
    """The conda packages in ``prefix``: name to ``version=build``. None where conda made nothing."""
    matches = [_RECORD.fullmatch(name) for name in _listed(prefix / "conda-meta")]
    return {match["name"]: f"{match['version']}={match['build']}" for match in matches if match}


def _hooks(folder: Path) -> tuple[Hook, ...]:
    found = []
    for part in ("activate.d", "deactivate.d"):
        for entry in _listed(folder / part):
            path, name = folder / part / entry, f"{part}/{entry}"
            if os.path.isfile(path):  # noqa: PTH113
                text = _text(path) if name in (ACTIVATE, DEACTIVATE) else ""
                found.append(Hook(name, text, _executable(path)))
    return tuple(found)


def _executable(path: Path) -> bool:
    try:
        # Not os.access: for root everything would be executable that somebody else may execute.
        return bool(path.stat().st_mode & 0o100)
    except OSError:
        return False


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            text = stream.read(HOOK_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    return _SECRET.sub(r"\1***", text)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  names are wanted, and OSError at once
    except OSError:
        return []
