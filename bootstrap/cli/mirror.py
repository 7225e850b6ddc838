"""``ucllm mirror create`` and ``ucllm mirror verify``: everything that a profile fetches, in one folder."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bootstrap import mirror, profiles
from bootstrap.cli.base import LazyGroup, Report, finish, json_option, profile_option, verbose_option
from bootstrap.profiles import Profile
from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import N_, _

TABLE = {
    "create": ("", N_("Collect what a profile fetches, for machines without a network.")),
    "verify": ("", N_("Compare every file of a mirror with its index.")),
}


class _Group(LazyGroup):
    """Its two commands are in this module."""

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """``create`` or ``verify``."""
        return {"create": create, "verify": verify}.get(cmd_name)


@click.group(
    cls=_Group,
    commands_table=TABLE,
    help=_("Make and check a mirror: a folder from which `--mirror` sets up without a network."),
)
def command() -> None:
    """The group; its help is above, translated."""


_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.command(help=_("Collect everything that a profile fetches in DIR. What is there already is kept."))
@_folder
@profile_option(required=True)
@click.option(
    "--python",
    "asked",
    metavar="VERSION",
    multiple=True,
    help=_("A Python of the profile to collect for, such as 3.12; default: the one that runs ucllm. Repeatable."),
)
@click.option(
    "--target-gpu",
    metavar="SM",
    help=_("The GPU that built wheels are for, such as sm_89; default: the profile's."),
)
@json_option
@verbose_option
def create(
    *,
    folder: Path,
    profile: str,
    asked: tuple[str, ...],
    target_gpu: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Fetch what is missing and write the index."""
    from bootstrap import mirror_create

    loaded = profiles.load(profile)
    folder = folder.absolute()
    pythons = _pythons(loaded, asked)
    gpu = f"sm_{loaded.gpu.capability.replace('.', '')}" if target_gpu is None and loaded.gpu else target_gpu or ""
    mirror_create.capability_of(gpu)
    data: dict[str, Any] = {"mirror": str(folder), "profile": loaded.name, "pythons": pythons, "target_gpu": gpu}
    try:
        index = mirror_create.create(folder, loaded, pythons, gpu, lambda text: click.echo(f"  {text}", err=True))
    except UcllmError as error:
        finish(Report("mirror create", "failed", 1, data, error.problems), as_json=as_json)
        return
    finish(Report("mirror create", "ok", 0, {**data, **_counted(index)}), as_json=as_json, text=_created)


@click.command(help=_("Compare every file in DIR with its index: size and sha256, what is missing, what is not in it."))
@_folder
@json_option
@verbose_option
def verify(
    *,
    folder: Path,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Tell everything that is wrong at once."""
    from bootstrap import mirror_create

    folder = folder.absolute()
    index, problems = mirror_create.verify(folder)
    data = {"mirror": str(folder), **_counted(index)}
    if problems:
        finish(Report("mirror verify", "problems", 1, data, _with_hints(folder, index, problems)), as_json=as_json)
    finish(Report("mirror verify", "ok", 0, data), as_json=as_json, text=_verified)


def _with_hints(folder: Path, index: mirror.Index, problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """What helps, once for those that the same helps against: after the last of them."""
    profile = min(index.profiles, default="NAME")
    create = f"`ucllm mirror create {shlex.quote(str(folder))} --profile {shlex.quote(profile)}`"
    complete = _("Complete it where the network can be reached: {command}.").format(command=create)
    hints = {True: _("Move away what is not in the index."), False: complete}
    told = []
    for item in reversed(problems):
        told.append(dataclasses.replace(item, hint=hints.pop(item.code == "mirror.unknown", "")))
    return tuple(reversed(told))


def _pythons(profile: Profile, asked: tuple[str, ...]) -> list[str]:
    """The Pythons to collect for: those asked for, else the tool's own if the profile has it, else the newest."""
    import platform

    unknown = [version for version in asked if version not in profile.pythons]
    if unknown:
        problems = [
            Problem(
                "usage",
                _("Profile {profile} has no Python {version}.").format(profile=profile.name, version=version),
                hint=did_you_mean(version, profile.pythons),
            )
            for version in unknown
        ]
        raise UcllmError.of(problems)
    own = ".".join(platform.python_version_tuple()[:2])
    return list(dict.fromkeys(asked)) or [own if own in profile.pythons else profile.pythons[-1]]


def _counted(index: mirror.Index) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for entry in index.files.values():
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
    return {
        "files": len(index.files),
        "bytes": sum(entry.size for entry in index.files.values()),
        "kinds": dict(sorted(kinds.items())),
        "profiles": dict(index.profiles),
    }


def _created(data: Mapping[str, Any]) -> str:
    text = _("Mirror {mirror}: {count} files, {megabytes} MB, for profile {profile}, Python {pythons}")
    line = text.format(
        mirror=data["mirror"],
        count=data["files"],
        megabytes=round(data["bytes"] / 1e6),
        profile=data["profile"],
        pythons=", ".join(data["pythons"]),
    )
    there = _("Next, where there is no network: `ucllm setup --profile {profile} --mirror {mirror}`")
    return line + "\n" + there.format(profile=data["profile"], mirror=data["mirror"])


def _verified(data: Mapping[str, Any]) -> str:
    text = _("Mirror {mirror}: {count} files, {megabytes} MB, all as in its index")
    return text.format(mirror=data["mirror"], count=data["files"], megabytes=round(data["bytes"] / 1e6))
