"""What the commands share: lazy loading, common options, the report and its two renderings."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import _

RESULT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What a command found out or did; text and JSON are two renderings of it."""

    command: str
    status: str
    exit_code: int
    data: Mapping[str, Any]
    errors: tuple[Problem, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of DESIGN section 5."""
        return {
            "ucllm_result_version": RESULT_VERSION,
            "command": self.command,
            "status": self.status,
            "exit_code": self.exit_code,
            "data": self.data,
            "errors": [{"code": item.code, "message": item.message, "hint": item.hint} for item in self.errors],
        }


def emit(report: Report, *, as_json: bool, text: Callable[[Mapping[str, Any]], str] | None = None) -> None:
    """Print the report: one JSON object on stdout, or ``text(data)`` on stdout and the errors on stderr."""
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False))
        return
    try:
        body = text(report.data) if text is not None else ""
        if body:
            click.echo(body)
    finally:  # also when standard output takes nothing
        for problem in report.errors:
            click.echo(style(_("error:"), "red", err=True) + " " + problem.message, err=True)
            if problem.hint:
                click.echo(style(_("hint:"), "cyan", err=True) + " " + problem.hint, err=True)


def style(text: str, color: str, *, err: bool = False) -> str:
    """``text`` in a colour, where the stream is a terminal and ``NO_COLOR`` is not set."""
    stream = sys.stderr if err else sys.stdout
    plain = bool(os.environ.get("NO_COLOR")) or not stream.isatty()
    return text if plain else click.style(text, fg=color)


class LazyGroup(click.Group):
    """A group whose commands are modules with a ``command``, imported when called; help needs none of them."""

    def __init__(self, *args: Any, commands_table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = commands_table

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All commands, in the order a newcomer needs them."""
        return list(self.table)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, which offers ``command``."""
        if cmd_name not in self.table:
            return None
        return cast("click.Command", importlib.import_module(self.table[cmd_name][0]).command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a hint for a command that does not exist."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            error = UcllmError(
                "usage",
                _("`{group}` has no command `{name}`.").format(group=ctx.command_path, name=args[0]),
                hint=did_you_mean(args[0], list(self.table)),
            )
            raise error
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the lines we already have."""
        rows = [(name, _(line)) for name, (_module, line) in self.table.items()]
        with formatter.section(_("Commands")):
            formatter.write_dl(rows)


F = TypeVar("F", bound=Callable[..., Any])


workspace_option = click.option(
    "--workspace", type=click.Path(path_type=Path, file_okay=False), help=_("The workspace directory.")
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help=_("One JSON object on stdout, everything else on stderr.")
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help=_("Show tracebacks."))


def profile_option(*, required: bool = False) -> Callable[[F], F]:
    """The option that names a profile; by default one is recorded or found."""
    text = _("What must be true: the name of a profile, or a folder with one.")
    return click.option("--profile", required=required, help=text, envvar="UCLLM_PROFILE")


def common_options(function: F) -> F:
    """The options of every command that works on a workspace."""
    options = [workspace_option, profile_option(), json_option, verbose_option]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


def mirror_option(function: F) -> F:
    """The option of the commands that fetch something."""
    text = _("Fetch everything from this folder or address, made by `ucllm mirror create`, and nothing from elsewhere.")
    return click.option("--mirror", metavar="DIR|URL", help=text)(function)


@dataclass(frozen=True)
class Chosen:
    """The profile in force, and why it is that one."""

    name: str
    reason: str


def choose_profile(option: str | None, recorded: str) -> Chosen:
    """``--profile`` or ``UCLLM_PROFILE``, else what the workspace recorded, else detected (DESIGN section 3)."""
    if option:
        return Chosen(option, _("it was asked for"))
    if recorded:
        return Chosen(recorded, _("the workspace was set up with it"))
    import shutil

    from bootstrap import profiles

    gpu = Path("/proc/driver/nvidia/version").exists()
    name, reason = profiles.detect(gpu, shutil.which("sinfo") is not None, cuda_torch=_active_python_has_cuda_torch())
    return Chosen(name, reason)


def _active_python_has_cuda_torch() -> bool:
    """Whether the Python on PATH has a torch built for CUDA, told by its files, without importing it."""
    import shutil

    python = shutil.which("python3") or shutil.which("python")
    if python is None:
        return False
    # A virtual environment's Python is a link: its packages lie where the link is, not where it points.
    roots = (Path(python).absolute().parents[1], Path(python).resolve().parents[1])
    return any(any(root.glob("lib/python3*/site-packages/torch/lib/libtorch_cuda.so")) for root in roots)


def finish(report: Report, *, as_json: bool, text: Callable[[Mapping[str, Any]], str] | None = None) -> None:
    """Print the report and leave with its exit code."""
    emit(report, as_json=as_json, text=text)
    raise click.exceptions.Exit(report.exit_code)
