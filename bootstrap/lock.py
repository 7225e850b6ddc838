"""A profile's lock files, made: ``conda-lock.yml`` by conda-lock, hash-locked requirements by uv.

Both are other programs, which only those need who make locks (the extra ``lock`` of pyproject.toml). What is to be
locked is the profile's: ``environment.yml``, the ``.in`` files, and the table ``[lock]`` of ``profile.toml``.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import conda, host, profiles
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.process import tail
from pipeline.recipe import load_toml

#: What conda-lock reads.
ENVIRONMENT = "environment.yml"
PLATFORM = "linux-64"
#: How to install the two programs.
INSTALL = "pip install 'conda-lock>=4' 'uv>=0.9'"
EXECUTABLE = Path(conda.__file__).with_name("executable.py")

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
_ARCHIVE = re.compile(
    r"^ +url: \S+/(?P<name>[^/\s]+)-(?P<version>[^-/\s]+)-(?P<build>[^-/\s]+)\.(?:conda|tar\.bz2)", re.MULTILINE
)
#: What conda-lock says between these is what the conda executable answered.
_REASON = re.compile(r"^Could not lock the environment[^\n]*\n(?P<reason>.*?)^ +Command:", re.MULTILINE | re.DOTALL)
#: The address of a channel in that answer: said by py-rattler, or seen in the address of its index.
_CHANNEL = re.compile(rf"in channel '(\S+?)/?'|((?:https?|file)://\S+?)/(?:{PLATFORM}|noarch)/\S*repodata")


@dataclass(frozen=True)
class Requirements:
    """A hash-locked requirements file: what ``inputs`` come to, but for the packages ``without``, or of them ``only``.

    Both are patterns of names (``nvidia-*``). ``about`` is the comment at its top.
    """

    about: str
    inputs: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def keeps(self, name: str) -> bool:
        """Whether the package is in this file."""
        taken = not self.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)
        return taken and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.without)


@dataclass(frozen=True)
class Recipe:
    """How a profile's locks are made. ``python`` is its oldest; without a ``platform`` one lock serves all of Linux.

    ``pins`` and ``virtual`` are of conda: what the lock must agree with, and the machine it is solved for.
    """

    profile: str
    folder: Path
    python: str
    exclude_newer: str
    platform: str
    requirements: Mapping[str, Requirements]
    pins: Mapping[str, str]
    virtual: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all locks that can be made."""
        return (*([conda.LOCK] if (self.folder / ENVIRONMENT).is_file() else []), *self.requirements)


def read(name: str) -> Recipe:
    """The recipe of a profile, whose locks need not be there yet. Raises :class:`UcllmError` if there is none."""
    folder = profiles.folder_of(name)
    path = folder / "profile.toml"
    if not path.is_file():
        profiles.load(name)  # which says what is wrong with the name
    data = load_toml(path)
    try:
        table: Mapping[str, Any] = data.get("lock", {})
        machine = profiles.Needs(**data.get("machine", {}))
        cuda = data.get("cuda", {}).get("version", "")
        return Recipe(
            profile=name,
            folder=folder,
            python=data["python"]["versions"][0],
            exclude_newer=table["exclude_newer"] if table else "",
            platform=table.get("platform", ""),
            requirements={file: _requirements(told) for file, told in table.get("files", {}).items()},
            pins=data.get("conda", {}).get("packages", {}),
            virtual={
                package: version if build == "0" else f"{version} {build}"
                for package, version, build in conda.virtual_packages("x86_64", machine.glibc, cuda)
            },
        )
    except (KeyError, TypeError) as error:
        why = _("{key} is missing").format(key=error) if isinstance(error, KeyError) else str(error)
        raise UcllmError("profile.invalid", _("{path} is not a profile.").format(path=path), why) from error


def _requirements(told: Mapping[str, Any]) -> Requirements:
    lists = {key: tuple(value) for key, value in told.items() if key != "about"}
    return Requirements(about=told["about"], **lists)


class Maker:
    """Makes the locks of one recipe in a folder of its own, ``scratch``; nothing else is written."""

    def __init__(self, recipe: Recipe, scratch: Path, executable: str, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.scratch = scratch
        #: The conda that conda-lock calls; empty for ours.
        self.executable = executable
        self.say = say
        self._compiled = functools.cache(self._compile)

    def make(self, file: str) -> str:
        """The text of one lock. Raises :class:`UcllmError` when it cannot be made."""
        self.say(_("making {file}").format(file=file))
        if file == conda.LOCK:
            return self._conda()
        wanted = self.recipe.requirements[file]
        blocks = self._compiled(wanted.inputs, wanted.constraints)
        about = "".join(f"# {line}\n" for line in wanted.about.splitlines())
        return about + "".join(text for name, text in blocks if wanted.keeps(name))

    def _compile(self, inputs: tuple[str, ...], constraints: tuple[str, ...]) -> list[tuple[str, str]]:
        """What uv makes of the inputs: each package's name and its lines."""
        target = self.scratch / f"compiled-{'-'.join(inputs)}"
        where = ("--python-platform", self.recipe.platform) if self.recipe.platform else ("--universal",)
        argv = [
            # In a folder where no project's configuration is found. The user's own, with the site's index, is read.
            *(
                *_uv(),
                "--directory",
                str(self.scratch),
                "pip",
                "compile",
                *where,
                "--python-version",
                self.recipe.python,
            ),
            *("--exclude-newer", self.recipe.exclude_newer, "--generate-hashes", "--no-emit-index-url"),
            *("--no-header", "--no-annotate", "--quiet", "--output-file", str(target)),
            *(str(self.recipe.folder / name) for name in inputs),
            *(word for name in constraints for word in ("--constraint", str(self.recipe.folder / name))),
        ]
        log = self.scratch / "uv.txt"
        try:
            # It may build a source distribution to read its metadata: with the Python that is there.
            host.run_logged(argv, log=log, env={"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"})
        except UcllmError as error:
            raise UcllmError(
                "lock.uv",
                _("uv cannot lock {files}.").format(files=", ".join(inputs)),
                host.without_logins(tail(log)),
                _("Run it where the package index can be reached: `{command}`").format(command=self._again()),
            ) from error
        blocks: list[tuple[str, str]] = []
        for line in target.read_text(encoding="utf-8").splitlines(keepends=True):
            name = _NAME.match(line)
            if name:
                blocks.append((profiles.normalize(name[0]), line))
            elif blocks and line.startswith(" "):
                blocks[-1] = (blocks[-1][0], blocks[-1][1] + line)
        return blocks

    def _conda(self) -> str:
        """``conda-lock.yml``, in which every package has a hash and the profile's own pins hold."""
        # The lock names its source as it finds it from where it lies.
        source = shutil.copy(self.recipe.folder / ENVIRONMENT, self.scratch / ENVIRONMENT)
        target, machine, names = (self.scratch / name for name in (conda.LOCK, "virtual-packages.yml", "names.json"))
        packages = "".join(f'      {name}: "{version}"\n' for name, version in self.recipe.virtual.items())
        machine.write_text(f"subdirs:\n  {PLATFORM}:\n    packages:\n{packages}", encoding="utf-8")
        names.write_text("{}", encoding="utf-8")  # PyPI's names of conda packages: there is no pip in it
        argv = [
            *(*_conda_lock(), "lock", "--conda", self.executable or str(self._ours()), "--file", str(source)),
            *("--platform", PLATFORM, "--virtual-package-spec", str(machine), "--lockfile", str(target)),
            *("--pypi_to_conda_lookup_file", names.as_uri()),
        ]
        log = self.scratch / "conda-lock.txt"
        try:
            host.run_logged(argv, log=log, env={"PYTHONSAFEPATH": "1"})  # the current directory may have anything
        except UcllmError as error:
            raise self._unlocked(log) from error
        text = target.read_text(encoding="utf-8")
        self._compare_with_pins(text)
        return text

    def _ours(self) -> Path:
        """A command that starts our own conda with the Python that runs this."""
        command = self.scratch / "conda"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(EXECUTABLE))} "$@"\n')
        command.chmod(0o755)
        return command

    def _unlocked(self, log: Path) -> UcllmError:
        """Why conda-lock gave nothing: a channel that cannot be read, or what else its conda said."""
        said = _REASON.search(log.read_text(encoding="utf-8", errors="replace"))
        reason = host.without_logins(said["reason"].strip() if said else tail(log))
        channel = _CHANNEL.search(reason)
        if channel is None:
            what = _("conda-lock cannot lock {path}.").format(path=self.recipe.folder / ENVIRONMENT)
            return UcllmError("lock.conda", what, reason)
        return UcllmError(
            "lock.channel",
            _("The conda channel {channel} cannot be read.").format(channel=channel[1] or channel[2]),
            reason,
            _(
                "Run `{command}` where it can be reached, and bring {file} from there to {folder}. "
                "Or name a conda that is set up for a mirror: --conda EXE."
            ).format(command=self._again(), file=conda.LOCK, folder=self.recipe.folder),
        )

    def _compare_with_pins(self, text: str) -> None:
        found = {match["name"]: f"{match['version']}={match['build']}" for match in _ARCHIVE.finditer(text)}
        if text.count("\n    sha256: ") != text.count("\n- name: "):
            raise UcllmError(
                "lock.no-sha256",
                _("{file} would have packages without a sha256, which setup refuses.").format(file=conda.LOCK),
            )
        wrong = [
            _("{name} is {found}, not {wanted}").format(name=name, found=found.get(name, "-"), wanted=pin)
            for name, pin in self.recipe.pins.items()
            if pin not in (found.get(name), found.get(name, "").partition("=")[0])
        ]
        if wrong:
            raise UcllmError(
                "lock.contradicts",
                _("{file} would contradict the profile's own versions.").format(file=conda.LOCK),
                "; ".join(wrong),
                _("Let {environment} and [conda.packages] of {path} agree.").format(
                    environment=ENVIRONMENT, path=self.recipe.folder / "profile.toml"
                ),
            )

    def _again(self) -> str:
        return f"ucllm lock --profile {shlex.quote(self.recipe.profile)}"


def versions(file: str, text: str) -> dict[str, str]:
    """Package to version, for people to compare; every line of one counts (``numpy`` once for each Python)."""
    if file == conda.LOCK:
        return {match["name"]: f"{match['version']}={match['build']}" for match in _ARCHIVE.finditer(text)}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, rest = line.partition("==")
        if equals and _NAME.match(name):
            found[name] = " | ".join(filter(None, (found.get(name), rest.rstrip("\\ ").strip())))
    return found


def _uv() -> list[str]:
    """The command uv: the tool's own, else one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise UcllmError(
            "lock.no-uv", _("uv is not installed."), hint=_("Install it: `{command}`").format(command=INSTALL)
        )
    return [found]


def _conda_lock() -> list[str]:
    if importlib.util.find_spec("conda_lock") is None:
        what = _("conda-lock is not installed in the Python that runs ucllm.")
        hint = _("Install it: `{command}`").format(command=f"{sys.executable} -m {INSTALL}")
        raise UcllmError("lock.no-conda-lock", what, hint=hint)
    return [sys.executable, "-m", "conda_lock"]
