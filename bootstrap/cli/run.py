"""``ucllm run -- CMD ARGS...``: a command in the workspace's environment, for scripts and batch jobs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from bootstrap import activation
from bootstrap import workspace as workspaces
from bootstrap.cli.base import workspace_option
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: As the shells say it.
NOT_FOUND, NOT_STARTED = 127, 126


class StartError(UcllmError):
    """The command does not run; the exit code says why, as a shell's does."""

    def __init__(self, exit_code: int, what: str, why: str = "", hint: str = "") -> None:
        super().__init__("run.not-started", what, why, hint)
        self.exit_code = exit_code


@click.command(
    help=_(
        "Run a command in the workspace's environment, as after `conda activate`: for scripts and batch jobs. "
        "For example: `ucllm run -- deepspeed train.py`"
    ),
    options_metavar="[--workspace DIR]",
    context_settings={"allow_interspersed_args": False},
)
@workspace_option
@click.argument("words", metavar="-- CMD ARGS...", nargs=-1, type=click.UNPROCESSED)
def command(*, workspace: Path | None, words: tuple[str, ...]) -> None:
    """Become the command: its exit code is ours, and signals go to it."""
    if not words or not words[0]:
        what = _("There is no command to run.")
        raise UcllmError("usage", what, hint=_("Name one after `--`: `ucllm run -- python train.py`"))
    place = workspaces.find(workspace)
    become(words, activation.variables(place, activation.caller_variables()))


def become(argv: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command that is looked for on the ``PATH`` of ``variables``."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and the command would inherit that
        signal.signal(number, signal.SIG_DFL)
    name, path = argv[0], variables.get("PATH", "")
    try:
        try:
            os.execvpe(name, list(argv), variables)  # noqa: S606  the user's command, in words
        except OSError as error:
            script = shutil.which(name, path=path)
            if error.errno != errno.ENOEXEC or script is None:
                raise
            # A script without a `#!` line: shells give it to sh.
            os.execve("/bin/sh", ["sh", script, *argv[1:]], variables)  # noqa: S606
    except OSError as error:
        raise _not_started(name, path, error) from error


def _not_started(name: str, path: str, error: OSError) -> StartError:
    what = _("Cannot run `{command}`.").format(command=name)
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return StartError(NOT_STARTED, what, error.strerror or str(error))
    if os.path.lexists(name) or shutil.which(name, path=path):
        why = _("The program that its first line names is not there.")
        return StartError(NOT_STARTED, what, why)
    if os.sep in name:
        return StartError(NOT_FOUND, what, error.strerror or str(error))
    why = _("There is no such program in the environment, nor elsewhere on PATH.")
    return StartError(NOT_FOUND, what, why, _("See what PATH is there: `ucllm run -- printenv PATH`"))
