"""The command line: one module per command, loaded only when it is called."""

from __future__ import annotations

import gettext
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from bootstrap import __version__
from bootstrap.cli import streams
from bootstrap.cli.base import LazyGroup, Report, emit
from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import DOMAIN, LOCALE_DIR, N_, _, language

#: Name, module, and the line `ucllm --help` shows without loading the module.
COMMANDS = {
    "setup": ("bootstrap.cli.setup", N_("Make the environment: everything Step 0 does, resumable and verified.")),
    "doctor": ("bootstrap.cli.doctor", N_("Say what is true, what is wrong and what repairs it; --fix repairs it.")),
    "undo": ("bootstrap.cli.undo", N_("Put back what a fix moved aside.")),
    "run": ("bootstrap.cli.run", N_("Run a command in the environment, for scripts and batch jobs.")),
    "shell": ("bootstrap.cli.shell", N_("Start a shell in the environment.")),
    "status": ("bootstrap.cli.status", N_("Show what was done in the workspace, and when.")),
    "lock": ("bootstrap.cli.lock", N_("Make a profile's lock files, or compare them with what would be made.")),
    "mirror": ("bootstrap.cli.mirror", N_("Collect what a profile fetches, for machines without a network.")),
    "train": ("bootstrap.cli.train", N_("Run steps 1 to 5: tokenizer, corpus, pretrain, convert, fine-tune, upload.")),
}


@click.group(
    cls=LazyGroup,
    commands_table=COMMANDS,
    help=_("Environment bootstrapper and doctor for LLM training, and the pipeline that trains once it is right."),
    epilog=_("Start with `ucllm setup`, then `ucllm train all`."),
)
@click.version_option(__version__, prog_name="ucllm", help=_("Show the version and exit."))
def ucllm() -> None:
    """The root command; its help is above, translated."""


def main() -> NoReturn:
    """Run the command line and exit as DESIGN section 5 says: 0 fine, 2 usage, 130 interrupted, …"""
    signal.signal(signal.SIGTERM, _interrupt)
    _translate_click()
    try:
        streams.prepare()
        code = _run()
    except streams.UnwritableError as error:
        code = 2
        # On standard error: nobody could read it as JSON.
        emit(Report("", "error", code, {}, error.problems), as_json=False)
    sys.exit(code)


def _run() -> int:
    """Run the command, say what went wrong, and return the exit code."""
    try:
        # Without standalone mode click returns the code of `ctx.exit()` instead of exiting.
        result = ucllm.main(prog_name="ucllm", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        hint = _("Run the same command again; it continues where it stopped.")
        code = _report("interrupted", 130, [Problem("interrupted", _("Interrupted."), hint=hint)])
    except click.exceptions.NoSuchOption as error:
        hint = did_you_mean(error.option_name, error.possibilities) if error.possibilities else _help_hint(error)
        code = _report("usage", 2, [Problem("usage", error.message, hint=hint)])
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer: the message is the help
            click.echo(error.format_message(), err=True)
            return 2
        hint = getattr(error, "hint", "") or _help_hint(error)
        code = _report("usage", 2, [Problem("usage", error.format_message(), hint=hint)])
    except click.ClickException as error:
        code = _report("usage", 2, [Problem("usage", error.format_message())])
    except streams.UnwritableError:
        raise
    except UcllmError as error:
        code = _report("error", getattr(error, "exit_code", 2), error.problems)
    except Exception as error:
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        hint = _("Run the command again with -v and report what it prints.")
        what = _("ucllm itself failed: {error}").format(error=f"{type(error).__name__}: {error}")
        code = _report("error", 70, [Problem("internal", what, hint=hint)])
    return code


def _translate_click() -> None:
    """Let click find its own texts (see :mod:`bootstrap.cli.click_texts`) in our catalogue, in our language."""
    gettext.bindtextdomain(DOMAIN, LOCALE_DIR)
    gettext.textdomain(DOMAIN)
    # The standard library asks this variable first; UCLLM_LANG is ours alone.
    os.environ["LANGUAGE"] = language()


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _help_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "ucllm"
    return _("See `{command} --help`.").format(command=path)


def _report(status: str, code: int, problems: Sequence[Problem]) -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    command = " ".join(words[: 2 if words[:1] in (["mirror"], ["train"]) else 1])
    # After `ucllm run` the options are another command's.
    emit(Report(command, status, code, {}, tuple(problems)), as_json="--json" in sys.argv and command != "run")
    return code
