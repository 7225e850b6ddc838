"""What pip installs, for a mirror: the wheels of each lock for each Python, without that Python being there."""

from __future__ import annotations

import os
import platform
import re
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootstrap import host, mirror
from bootstrap.mirror import Entry, Index
from bootstrap.profiles import Profile, normalize
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import sha256_file

#: The oldest glibc 2.x that wheels are made for.
_OLDEST_GLIBC = 5
#: Older names of some of them.
_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def locks_of(profile: Profile) -> list[Path]:
    """The locks of wheels, without torch's."""
    of_torch = profile.torch.lock if profile.torch else ""
    return [profile.folder / name for name in dict.fromkeys(pin.lock for pin in profile.pins) if name != of_torch]


def sdist_locks_of(profile: Profile) -> list[Path]:
    """The locks of what is compiled here: those that no step installs wheels from."""
    others = {path.name for path in locks_of(profile)}
    others |= {profile.torch.lock, profile.torch.default_lock} if profile.torch else set()
    return [profile.folder / name for name in profile.digests if name.endswith(".lock") and name not in others]


@dataclass(frozen=True)
class Collector:
    """Collects wheels into ``folder``, by way of ``work``."""

    folder: Path
    work: Path
    profile: Profile
    known: Index
    say: Callable[[str], None]

    @staticmethod
    def sdists(lock: Path) -> list[tuple[str, list[str]]]:
        """Name and sha256s of each package in a lock of source distributions."""
        return [(name, hashes) for name, _line, hashes in _read(lock)]

    def torch(self, python: str) -> list[Entry]:
        """torch as setup tries it: the CPU wheel from the index, then from PyTorch's, else the default wheel."""
        torch = self.profile.torch
        assert torch is not None  # noqa: S101  the caller has looked
        for options in ((), torch.pip_options):
            try:
                return self.wheels(self.profile.folder / torch.lock, python, *options)
            except UcllmError as error:
                last = bool(options) and not torch.default_lock
                if last or error.problems[0].code != "mirror.no-wheel":
                    raise
        self.say(_("torch: no CPU wheel can be had here, so the index's default wheel is taken"))
        return self.wheels(self.profile.folder / torch.default_lock, python)

    def wheels(self, lock: Path, python: str, *options: str) -> list[Entry]:
        """The wheels of a lock that this Python installs, each with the hash that the lock has."""
        self.say(_("fetching the packages of {lock} for Python {python}").format(lock=lock.name, python=python))
        found: dict[str, Entry] = {}
        # A marker may tell apart even releases of one Python, and which one it will be is not known here.
        for number, lines in enumerate({_for(lock, python, release): None for release in ("0", "99")}):
            there, missing = self._split(lines, python)
            if missing:
                there += self._download(missing, lock, python, self.work / f"{lock.name}-{python}-{number}", options)
            found |= {entry.path: entry for entry in there}
        return list(found.values())

    def _split(self, lines: Sequence[str], python: str) -> tuple[list[Entry], list[str]]:
        """The wheels that the mirror has for these requirements, and those requirements for which it has none."""
        from packaging.tags import compatible_tags, cpython_tags
        from packaging.utils import InvalidWheelFilename, parse_wheel_filename

        version, platforms = tuple(int(part) for part in python.split(".")), _platforms(self.profile)
        interpreter = f"cp{python.replace('.', '')}"
        tags = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)}
        known: dict[str, list[Path]] = {}
        for path in sorted((self.folder / mirror.WHEELS).glob("*.whl")):
            try:
                name, release, _build, fits = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            if fits & tags:
                known.setdefault(f"{name}=={release}", []).append(path)
        there, missing = list[Entry](), list[str]()
        for line in lines:
            pin, _space, hashes = line.partition(" ")
            fitting = (path for path in known.get(_normalized(pin), ()) if sha256_file(path) in hashes)
            found = next(fitting, None)
            if found is None:
                missing.append(line)
            else:
                there.append(self._keep(found, ""))
        return there, missing

    def _download(
        self, lines: Sequence[str], lock: Path, python: str, place: Path, options: Sequence[str]
    ) -> list[Entry]:
        stage, log, file = place / "wheels", place / "log.txt", place / "requirements.txt"
        stage.mkdir(parents=True, exist_ok=True)
        (place / "tmp").mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        tags = [word for name in _platforms(self.profile) for word in ("--platform", name)]
        target = ("--implementation", "cp", "--python-version", python, *tags, "--dest", str(stage))
        argv = (sys.executable, "-I", "-m", "pip", "download", *_EXACT, *target, *options, "-r", str(file))
        settings = {
            "PIP_CONSTRAINT": os.devnull,  # a lock is exact
            "PIP_USER": "0",
            "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR") or str(self.work / "pip"),
            "TMPDIR": str(place / "tmp"),
        }
        try:
            host.run_logged(argv, log=log, env=settings)
        except UcllmError as error:
            raise _failed(lock, python, log) from error
        urls, wanted = _urls(log), set(re.findall(r"--hash=sha256:([0-9a-f]{64})", " ".join(lines)))
        kept = []
        for path in sorted(stage.glob("*.whl")):
            # What a killed one left, under whatever name: pip compares only the files that it was asked for.
            if sha256_file(path) in wanted:
                kept.append(self._keep(path, urls.get(path.name, "")))
            else:
                path.unlink()
        return kept

    def _keep(self, path: Path, url: str) -> Entry:
        name = f"{mirror.WHEELS}/{path.name}"
        target, sha256 = self.folder / name, sha256_file(path)
        require_same(self.folder, self.known, name, sha256)
        if not (target.exists() and sha256_file(target) == sha256):
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        known = self.known.files.get(name)
        return Entry("wheel", path.name, name, sha256, target.stat().st_size, url or (known.url if known else ""))


def require_same(folder: Path, known: Index, path: str, sha256: str) -> None:
    """Refuse to replace what another profile's lock names by something else of the same name."""
    there = known.files.get(path)
    if there is not None and there.sha256 != sha256:
        what = _("The mirror {mirror} has another {name}.").format(mirror=folder, name=path)
        hint = _("Make a mirror of its own for this profile, in another folder.")
        raise UcllmError("mirror.conflict", what, hint=hint)


#: As setup installs; what it says at length tells where each file came from.
_EXACT = (
    *("--require-hashes", "--no-deps", "--only-binary", ":all:"),
    *(*host.PIP_QUIET, "-vv"),
)


def _platforms(profile: Profile) -> list[str]:
    """The platforms of wheels that run on the oldest Linux of the profile, best first."""
    machine, newest = platform.machine(), int(profile.machine.glibc.partition(".")[2])
    names = []
    for minor in range(newest, _OLDEST_GLIBC - 1, -1):
        names.append(f"manylinux_2_{minor}_{machine}")
        if minor in _NAMES:
            names.append(f"{_NAMES[minor]}_{machine}")
    return [*names, f"linux_{machine}"]


def _normalized(pin: str) -> str:
    """``name==version`` as a wheel's file name says it."""
    from packaging.version import Version

    name, _equals, version = pin.partition("==")
    return f"{normalize(name.partition('[')[0])}=={Version(version)}"


def _read(lock: Path) -> list[tuple[str, str, list[str]]]:
    """Of each requirement in a lock: its name, what stands before the hashes, and the sha256s."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        requirement = re.sub(r"(^|\s)#.*", "", line).partition("--hash=")[0].strip()
        if requirement:
            name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
            found.append((normalize(name), requirement, re.findall(r"--hash=sha256:([0-9a-f]{64})", line)))
    return found


def _for(lock: Path, python: str, release: str) -> tuple[str, ...]:
    """The lock's requirements whose markers hold for that Python, without the markers: pip would ask its own Python."""
    from packaging.requirements import Requirement

    told = {"python_version": python, "python_full_version": f"{python}.{release}"}
    lines = []
    for _name, text, hashes in _read(lock):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(told):
            requirement.marker = None
            lines.append(" ".join((str(requirement), *(f"--hash=sha256:{digest}" for digest in hashes))))
    return tuple(lines)


def _urls(log: Path) -> dict[str, str]:
    """File name to address, as pip says them, which leaves passwords out."""
    text = log.read_text(encoding="utf-8", errors="replace")
    links = (link.partition("#")[0] for link in re.findall(r"Found link (\S+)", text))
    return {urllib.parse.unquote(link.rpartition("/")[2]): host.without_logins(link) for link in links}


def _failed(lock: Path, python: str, log: Path) -> UcllmError:
    """Why pip could not fetch a lock. ``mirror.no-wheel`` if there is no such wheel where it looked."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    what = _("Cannot fetch the packages of {lock} for Python {python}.").format(lock=lock.name, python=python)
    lacks = any("No matching distribution found" in line for line in lines)
    hint = _("Read {log}.").format(log=log)
    return UcllmError("mirror.no-wheel" if lacks else "mirror.pip-failed", what, " ".join(said[-2:]), hint)
