"""``ucllm shell``: the user's interactive shell in the workspace's environment."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from bootstrap import activation
from bootstrap import workspace as workspaces
from bootstrap.cli.base import workspace_option
from bootstrap.cli.run import become
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: What shells read in place of the user's own files, which they read first.
FILES = Path(activation.__file__).parent / "shells"


@click.command(help=_("Start your shell in the workspace's environment; `exit` leaves it."))
@workspace_option
@click.option("--export", is_flag=True, help=_("Print what sets the variables, for `eval` in a shell that is running."))
def command(*, workspace: Path | None, export: bool) -> None:
    """Become the shell."""
    place = workspaces.find(workspace)
    caller = activation.caller_variables()
    if export:
        # As bytes: a value may be no text.
        click.echo(os.fsencode(_assignments(caller, activation.variables(place, caller))), nl=False)
        return
    activation.require(place)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        what = _("`ucllm shell` is for a terminal, and there is none.")
        raise UcllmError("shell.no-terminal", what, hint=_("In a script: `ucllm run -- CMD ARGS...`"))
    # The shell's own files would undo what it starts with: it activates when it has read them.
    activate = [*activation.tool(), "shell", "--export", "--workspace", str(place.root)]
    argv, extra = _shell(caller)
    become(argv, {**caller, **extra, "UCLLM_SHELL": shlex.join(activate)})


def _shell(caller: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The user's shell with our start-up file, by argument or variable; bash where it is one we do not know."""
    path = caller.get("SHELL", "")
    name = Path(path).name
    if name not in ("bash", "zsh", "sh", "dash") or shutil.which(path) is None:
        path, name = shutil.which("bash") or "/bin/sh", "bash" if shutil.which("bash") else "sh"
        click.echo(_("Starting {shell}.").format(shell=path), err=True)
    if name == "bash":
        return [path, "--rcfile", str(FILES / "bashrc"), "-i"], {}
    if name == "zsh":
        return [path, "-i"], {"ZDOTDIR": str(FILES / "zsh"), "UCLLM_ZDOTDIR": caller.get("ZDOTDIR", "")}
    return [path, "-i"], {"ENV": str(FILES / "shrc"), "UCLLM_ENV": caller.get("ENV", "")}


def _assignments(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The shell's commands that make ``after`` of ``before``."""
    gone = [f"unset {name}\n" for name in sorted(before) if name not in after]
    changed = {name: value for name, value in sorted(after.items()) if before.get(name) != value}
    return "".join([*gone, *(f"export {name}={shlex.quote(value)}\n" for name, value in changed.items())])
