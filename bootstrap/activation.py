"""The variables of a workspace's environment, as after ``conda activate`` or ``source bin/activate``.

Neither conda nor an ``activate`` file is needed, nothing is written, and no file of the user's shell is touched.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bootstrap import host
from bootstrap.facts.env import UNFINISHED
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: For all the hooks of one folder, in seconds.
TIMEOUT_S = 60.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What bash sets for itself, and what would change how it reads a hook: the caller's values go to the command as is.
_OF_BASH = ("_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT")
_STACKED = re.compile(r"CONDA_PREFIX_\d+")
#: What says that another environment is active.
_OF_OTHERS = re.compile(
    rf"VIRTUAL_ENV(_PROMPT)?|PYTHONHOME|CONDA_(PREFIX|DEFAULT_ENV|SHLVL|PROMPT_MODIFIER)|{_STACKED.pattern}"
)


def variables(workspace: Workspace, caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """All variables for a command in the workspace's environment; ``caller`` are those now, else ``os.environ``.

    What else is active in ``caller`` is left first, as ``conda activate`` leaves it. Raises :class:`UcllmError` if
    there is no environment, and if a hook ends the shell or hangs.
    """
    require(workspace)
    env = workspace.env
    active = _active(os.environ if caller is None else caller)
    now = dict(os.environ if caller is None else caller)
    for prefix in active:
        now = _sourced(_hooks(prefix, "deactivate.d")[::-1], now)
    left = {name for prefix in active for name in _state(prefix)}
    now = {name: value for name, value in now.items() if name not in left and not _OF_OTHERS.fullmatch(name)}
    now["PATH"] = os.pathsep.join([str(env / "bin"), *_others(now.get("PATH") or os.defpath, [env, *active])])
    now |= _own(env)
    now = _sourced(_hooks(env, "activate.d"), now)
    # Else torch's builds take the first nvcc on PATH, or /usr/local/cuda.
    if not now.get("CUDA_HOME") and os.access(env / "bin" / "nvcc", os.X_OK):
        now["CUDA_HOME"] = str(env)
    return now


def require(workspace: Workspace) -> None:
    """Raise :class:`UcllmError` unless the workspace has a whole environment."""
    why = ""
    if os.path.lexists(workspace.env / UNFINISHED):
        why = _("Making it was interrupted.")
    elif os.access(workspace.python, os.X_OK):
        return
    what = _("There is no Python environment in {path}.").format(path=workspace.root)
    command = shlex.join(["ucllm", "setup", "--workspace", str(workspace.root)])
    raise UcllmError("env.missing", what, why, _("Make it with `{command}`.").format(command=command))


def caller_variables() -> dict[str, str]:
    """The variables that this process was started with: Python and we have changed ``os.environ`` since."""
    try:
        block = Path("/proc/self/environ").read_bytes()
    except OSError:
        return dict(os.environ)
    return _parsed(block)


def tool() -> list[str]:
    """The words that start ``ucllm``, whatever PATH is."""
    beside = Path(sys.executable).with_name("ucllm")
    return [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-m", "bootstrap"]


def prefix(workspace: Workspace) -> list[str]:
    """The words to put before a command's own, to run it in the workspace's environment from anywhere."""
    return [*tool(), "run", "--workspace", str(workspace.root), "--"]


def _active(variables: Mapping[str, str]) -> list[Path]:
    """The environments that are active, the innermost first."""
    stacked = sorted((name for name in variables if _STACKED.fullmatch(name)), reverse=True)
    named = [variables.get(name) for name in ("VIRTUAL_ENV", "CONDA_PREFIX", *stacked)]
    return list(dict.fromkeys(Path(value) for value in named if value))


def _others(path: str, leave_out: Sequence[Path]) -> Iterator[str]:
    """The entries of PATH that are not a ``bin`` of these environments. An empty one means the current folder."""
    gone = {os.path.normpath(env / "bin") for env in leave_out}
    return (entry for entry in path.split(os.pathsep) if not entry or os.path.normpath(entry) not in gone)


def _own(env: Path) -> dict[str, str]:
    """What activation sets. An adopted Python that is neither a virtual environment nor conda's has only its PATH."""
    if (env / "pyvenv.cfg").exists():
        return {"VIRTUAL_ENV": str(env), "VIRTUAL_ENV_PROMPT": env.name}
    if not (env / "conda-meta").is_dir():
        return {}
    return {
        "CONDA_PREFIX": str(env),
        "CONDA_DEFAULT_ENV": str(env),
        "CONDA_SHLVL": "1",
        "CONDA_PROMPT_MODIFIER": f"({env}) ",
        **_state(env),
    }


def _state(env: Path) -> dict[str, str]:
    """What packages and ``conda env config vars set`` want set while the environment is active."""
    found: dict[str, object] = {}
    for path in [*sorted(_listed(env / "etc" / "conda" / "env_vars.d")), env / "conda-meta" / "state"]:
        try:
            said = json.loads(path.read_bytes())
            found |= said["env_vars"] if path.name == "state" else said
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return {
        name: value
        for name, value in found.items()
        # Conda's word for a variable that is to be left alone.
        if isinstance(value, str) and "\0" not in value and value != "***unset***" and _NAME.fullmatch(name)
    }


def _hooks(env: Path, part: str) -> list[Path]:
    """The hooks in one folder, in the order in which conda sources them."""
    return sorted(path for path in _listed(env / "etc" / "conda" / part) if path.suffix == ".sh")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _sourced(hooks: Sequence[Path], now: dict[str, str]) -> dict[str, str]:
    """The variables after bash has sourced ``hooks``. What they print goes to standard error."""
    if not hooks:
        return now
    env = shutil.which("env") or "/usr/bin/env"
    lines = ["exec {_ucllm_answer}>&1 1>&2"]
    for hook in hooks:  # each is named before it runs: the last one named has ended the shell
        path = shlex.quote(str(hook))
        lines += [f"printf '%s\\0' {path} >&$_ucllm_answer", f". {path}"]
    lines += ["printf '\\0' >&$_ucllm_answer", f"exec {shlex.quote(env)} -0 >&$_ucllm_answer"]
    bash = [shutil.which("bash") or "/bin/bash", "--noprofile", "--norc", "-c", "\n".join(lines)]
    hint = _("Put ucllm's hooks in their place with `ucllm doctor --fix`, or repair those of other packages.")
    what = _("The environment's activation hooks cannot be run.")
    try:
        clean = {name: value for name, value in now.items() if name not in _OF_BASH}
        said = host.output(bash, env=clean, timeout_s=TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise UcllmError("activation.failed", what, str(error), hint) from error
    named, whole, block = said.partition(b"\0\0")
    after = _parsed(block)
    if not whole or not after:
        last = os.fsdecode(named).rstrip("\0").rpartition("\0")[2]
        why = _("{path} ended the shell that ran it.").format(path=last)
        raise UcllmError("activation.failed", what, why, hint)
    # Bash writes exported functions in its own way; names like theirs no hook can set.
    kept = {name: value for name, value in now.items() if name in _OF_BASH or not _NAME.fullmatch(name)}
    return {name: value for name, value in after.items() if name not in _OF_BASH} | kept


def _parsed(block: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(item).partition("=") for item in block.split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}
