"""Conda packages without conda: what a profile's come to, their archives, and their installation.

The parent's side. Archives are fetched and hashed by us, also those of ``file://`` channels, which neither conda nor
py-rattler compares; :mod:`bootstrap.conda.client` resolves and links.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import host, mirror
from bootstrap.profiles import Conda, Profile
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import write_text_atomically

CLIENT = Path(__file__).with_name("client.py")
#: The lock of a profile, as conda-lock writes it.
LOCK = "conda-lock.yml"
#: What conda calls ``defaults``, on Linux.
DEFAULTS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
#: Where the channels lie that have only a name.
ALIAS = "https://conda.anaconda.org"
#: Archives fetched at the same time.
FETCHES = 6
SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}


@dataclass(frozen=True)
class Package:
    """One package of a solution; ``record`` is all that its channel says of it."""

    name: str
    version: str
    build: str
    url: str
    sha256: str
    size: int
    depends: tuple[str, ...]
    record: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Solution:
    """What a profile's conda packages come to: every package, exactly.

    ``locked``: the profile's lock says so; else they were solved here. ``inputs`` is the sha256 of what it was made of.
    """

    packages: tuple[Package, ...]
    locked: bool
    inputs: str

    @property
    def pins(self) -> dict[str, str]:
        """Name to ``version=build``."""
        return {package.name: f"{package.version}={package.build}" for package in self.packages}

    def closure(self, *names: str) -> tuple[Package, ...]:
        """Those of ``names`` that it has, and all that they need."""
        known = {package.name: package for package in self.packages}
        wanted, waiting = set[str](), {*names} & {*known}
        while waiting:
            wanted |= waiting
            waiting = {name for item in waiting for name in known[item].depends if name in known} - wanted
        return tuple(package for package in self.packages if package.name in wanted)


def solution_file(workspace: Workspace) -> Path:
    """Where setup keeps what it resolved."""
    return workspace.state / "conda-solution.json"


def load(file: Path) -> Solution | None:
    """A kept solution; ``None`` if there is none, or none that can be read."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        packages = tuple(_package(item) for item in data["packages"])
        return Solution(packages, bool(data["locked"]), str(data["inputs"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _package(record: Mapping[str, Any]) -> Package:
    return Package(
        name=record["name"],
        version=record["version"],
        build=record["build"],
        url=record["url"],
        sha256=record["sha256"],
        size=int(record.get("size") or 0),
        # A virtual package (`__glibc >=2.17`) is never in a solution.
        depends=tuple(str(spec).split()[0] for spec in record["depends"]),
        record=record,
    )


def lock_of(profile: Profile) -> Path | None:
    """The profile's complete lock, if it has one."""
    path = profile.folder / LOCK
    return path if path.is_file() else None


def channel_urls(channel: str, folder: Path) -> tuple[str, ...]:
    """The addresses of a channel: a name, ``defaults``, an address, or a path (a relative one is ``folder``'s)."""
    if channel == "defaults":
        return DEFAULTS
    if "://" in channel:
        return (channel.rstrip("/"),)
    if channel.startswith(("/", "./", "../", "~")):
        return ((folder / Path(channel).expanduser()).resolve().as_uri(),)
    return (f"{ALIAS}/{channel}",)


def _task(profile: Profile, conda: Conda) -> dict[str, Any]:
    """What is to be resolved, as the client reads it: by the profile, so that every machine comes to the same."""
    machine = platform.machine()
    lock, needs = lock_of(profile), profile.machine
    specs = []
    for name, pin in conda.packages.items():
        version, _equals, build = pin.partition("=")
        channel = conda.channel_of.get(name)
        where = f"{channel_urls(channel, profile.folder)[0]}::" if channel else ""
        specs.append(f"{where}{name} =={version} {build}".rstrip())
    virtual = virtual_packages(machine, needs.glibc, profile.cuda.version if profile.cuda else "")
    return {
        "lock": str(lock or ""),
        "subdir": SUBDIRS.get(machine, f"linux-{machine}"),
        "channels": [url for channel in conda.channels for url in channel_urls(channel, profile.folder)],
        "specs": specs,
        "virtual": virtual,
    }


def virtual_packages(machine: str, glibc: str, cuda: str) -> list[tuple[str, str, str]]:
    """The machine that is solved for: name, version and build of what no channel has. ``cuda`` may be empty."""
    return [
        ("__unix", "0", "0"),
        ("__linux", "3.10", "0"),  # the kernel that the oldest systems with glibc 2.17 have
        ("__glibc", glibc, "0"),
        ("__archspec", "1", machine),
        # Declared, not detected: a login node has no GPU, and resolves for those that have.
        *([("__cuda", cuda, "0")] if cuda else []),
    ]


def inputs(profile: Profile) -> str:
    """The sha256 of what a solution is made of: the lock and the platform, or specs, channels and virtual packages."""
    if profile.conda is None:
        return ""
    task, lock = _task(profile, profile.conda), lock_of(profile)
    made_of = [task["subdir"], lock.read_text(encoding="utf-8")] if lock else task
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def resolve(profile: Profile, workspace: Workspace, say: Callable[[str], None]) -> Solution:
    """The kept solution if it is that of this profile, else a new one, which is kept.

    Raises :class:`UcllmError` when there is none, a channel cannot be read, or a package has no sha256.
    """
    if profile.conda is None:
        raise ValueError(profile.name)
    kept, wanted = load(solution_file(workspace)), inputs(profile)
    if kept is not None and kept.inputs == wanted:
        return kept
    task = _task(profile, profile.conda)
    if workspace.mirror and not task["lock"]:
        mirror.fetch_solution(workspace, wanted, solution_file(workspace))
        solution = load(solution_file(workspace))
        if solution is not None and solution.inputs == wanted:
            return solution
    found = _client({"do": "resolve", **task, "cache": str(_cache(workspace) / "repodata")}, workspace)["packages"]
    if not found:
        what = _("{path} has no packages for {platform}.").format(path=task["lock"], platform=task["subdir"])
        raise UcllmError("conda.empty", what)
    unnamed = sorted(item["fn"] for item in found if not item.get("sha256"))
    if unnamed:
        raise UcllmError(
            "conda.no-sha256",
            _("{names} cannot be checked: no sha256 is known.").format(names=", ".join(unnamed[:6])),
            _("The lock or the channel does not give one."),
        )
    data: dict[str, Any] = {"inputs": wanted, "locked": bool(task["lock"])}
    data["packages"] = sorted(found, key=lambda item: item["name"])
    write_text_atomically(solution_file(workspace), json.dumps(data, indent=1) + "\n")
    if not task["lock"]:
        text = _("the profile has no {lock}: its exact versions came to {count} packages, which are kept in {path}")
        say(text.format(lock=LOCK, count=len(found), path=solution_file(workspace)))
    return Solution(tuple(_package(item) for item in data["packages"]), data["locked"], wanted)


def install(
    packages: Collection[Package],
    prefix: Path,
    workspace: Workspace,
    say: Callable[[str], None],
    *,
    again: Collection[str] = (),
) -> None:
    """Bring ``prefix`` to these packages; what else is installed there stays. ``again``: install these anew.

    Every archive is fetched and its sha256 compared before anything in ``prefix`` changes. Raises :class:`UcllmError`.
    """
    there = _installed(prefix)
    changing = [item for item in packages if item.name in again or not _same(there.get(item.name), item)]
    archives = fetch(changing, workspace, say)
    job = {
        "do": "install",
        "prefix": str(prefix),
        "unpacked": str(_cache(workspace) / "unpacked"),
        "packages": [{**item.record, "archive": str(archives.get(item.name, ""))} for item in packages],
        "again": sorted({item.name for item in changing} & {*there}),
        "ignored": sorted({*there} - {item.name for item in packages}),
    }
    _client(job, workspace)


def fetch(packages: Collection[Package], workspace: Workspace, say: Callable[[str], None]) -> dict[str, Path]:
    """Fetch the archives side by side, each with its sha256; name to file. Raises :class:`UcllmError` of the first
    that cannot be had, and then stops the others.
    """
    folder = _cache(workspace) / "archives"
    # By hash: two channels may have different archives of one name.
    targets = {item.name: folder / item.sha256[:16] / item.file for item in packages}
    missing = [item for item in packages if not targets[item.name].exists()]
    if missing:
        size = sum(item.size for item in missing) / 1e6
        say(_("{count} packages to download, {megabytes} MB").format(count=len(missing), megabytes=round(size)))
    stopped = threading.Event()

    def progress(_done: int, _total: int) -> None:
        if stopped.is_set():
            raise InterruptedError  # after another failed: nobody waits for this one

    with ThreadPoolExecutor(FETCHES) as pool:
        jobs = [
            pool.submit(mirror.fetch, workspace, item.url, targets[item.name], item.sha256, progress=progress)
            for item in packages
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return targets


def _installed(prefix: Path) -> dict[str, dict[str, Any]]:
    """What conda's own records in ``prefix`` say, by name."""
    found = {}
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[str(record["name"])] = record
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = _("Cannot read {path}.").format(path=path)
            hint = _("Move it away and run the same command again; its package is then installed anew.")
            raise UcllmError("conda.record-unreadable", what, str(error), hint) from error
    return found


def _same(there: Mapping[str, Any] | None, package: Package) -> bool:
    """Whether an installed package is this one, told as rattler tells it."""
    if there is None:
        return False
    for key in ("sha256", "md5"):
        if there.get(key) and package.record.get(key):
            return bool(there[key] == package.record[key])
    return bool((there["version"], there["build"]) == (package.version, package.build))


def _cache(workspace: Workspace) -> Path:
    return workspace.state / "cache" / "conda"


def _client(job: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """Let the client do ``job``. Raises :class:`UcllmError` for what it could not do, with its reason."""
    found = importlib.util.find_spec("rattler")
    if found is None or not found.submodule_search_locations:
        raise _no_rattler("")
    file, answer = _cache(workspace) / "job.json", _cache(workspace) / "answer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    # -I hides a user's own site-packages, where rattler may be.
    path = str(Path(found.submodule_search_locations[0]).parent)
    file.write_text(json.dumps({**job, "path": path, "answer": str(answer)}), encoding="utf-8")
    log = workspace.state / "logs" / "conda.txt"
    host.run_logged((sys.executable, "-I", str(CLIENT), str(file)), log=log)
    said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" not in said:
        return said
    if said["error"] == "import":
        raise _no_rattler(said["text"])
    texts = {
        "unsolvable": _("The profile's conda packages do not go together."),
        "channel": _("A conda channel cannot be read."),
        "lock": _("{path} is not a lock that can be read.").format(path=job.get("lock")),
        "install": _("The conda packages could not be installed."),
    }
    hints = {
        "channel": _("Check the network or the proxy settings, then run the same command again."),
        "install": _("Make room or choose another workspace, then run the same command again."),
    }
    raise UcllmError(f"conda.{said['error']}", texts[said["error"]], said["text"], hints.get(said["error"], ""))


def _no_rattler(why: str) -> UcllmError:
    return UcllmError(
        "conda.no-rattler",
        _("The conda client py-rattler cannot be loaded by the Python that runs ucllm."),
        why,
        _("Install it: `{command}`").format(command=f"{sys.executable} -m pip install py-rattler"),
    )
