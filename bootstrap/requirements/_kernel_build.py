"""What ``build.fused-kernels`` and ``build.torch-extensions`` share: stale locks, builds for another machine.

A lock with a live owner is never touched. Who waits for a stale one is stopped first: a waiting process crashes when
the lock goes and the library is not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bootstrap.facts import Facts, KernelBuild, Lock, kernels
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.requirements import Action, Doing
from bootstrap.requirements._gpu import runs
from bootstrap.versions import minor, numbers, release
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: Seconds that a process that waits for a lock gets to end.
STOP_S = 15.0


def judge(builds: Sequence[KernelBuild], facts: Facts, good: str) -> Finding:
    """One finding for some build folders: the worst of them decides; ``good`` is the summary if all is well."""
    stale = [build.lock for build in builds if build.lock and _is_stale(build.lock)]
    alive = [build.lock for build in builds if build.lock and build.lock.owners]
    unsure = [build.lock for build in builds if build.lock and build.lock.elsewhere and not build.lock.owners]
    unread = [build for build in builds if build.error]
    misfits = _misfits(builds, facts)
    looked = [_("looked at {path}").format(path=build.path) for build in builds]
    evidence = [*looked, *(_describe(lock) for lock in (*stale, *alive, *unsure))]
    evidence += [_("{path}: built for {was}, now {now}").format(path=b.path, was=w, now=n) for b, w, n in misfits]
    if stale:
        text = _("Move the lock aside; what waits for it is stopped first.")
        if not any(lock.waiters for lock in stale):
            text = _("Move the lock aside; what is already compiled stays.")
        moves = tuple(command for lock in stale for command in _unlocking(lock))
        return fail(
            _("A build that was killed left its lock; the next start would hang."), evidence, _auto(text, moves)
        )
    if misfits:
        text = _("Move the build aside; it is compiled anew at the next start.")
        moves = tuple(
            shlex.join(("mv", path, f"{path}.old")) for path in dict.fromkeys(b.path for b, _w, _n in misfits)
        )
        return fail(_("It was built for another GPU, CUDA, torch or Python."), evidence, _auto(text, moves))
    if unread:
        return unknown(_("The build folder could not be looked at."), [build.error for build in unread])
    if unsure:
        text = _("If no other host and no other user is building there, move the lock away.")
        moves = tuple(shlex.join(("mv", lock.path, f"{lock.path}.old")) for lock in unsure)
        summary = _("There is a lock, and who holds it may be on another host or be another user.")
        return unknown(summary, evidence, Remedy(text, moves))
    if alive:
        pids = ", ".join(str(pid) for lock in alive for pid in lock.owners)
        text = _("Wait until it has finished.")
        return warn(_("It is being built by process {pids}.").format(pids=pids), evidence, Remedy(text))
    return ok(good, *evidence)


def _auto(text: str, commands: tuple[str, ...]) -> Remedy:
    return Remedy(text, commands, automatic=True)


def _is_stale(lock: Lock) -> bool:
    return not lock.owners and not lock.elsewhere


def _describe(lock: Lock) -> str:
    owners = ", ".join(map(str, lock.owners)) or _("none")
    waiters = ", ".join(map(str, lock.waiters)) or _("none")
    return _("{path}: {age} s old; processes that hold it open: {owners}; that wait or build there: {waiters}").format(
        path=lock.path, age=round(lock.age_s), owners=owners, waiters=waiters
    )


def _unlocking(lock: Lock) -> list[str]:
    stop = [shlex.join(("kill", *map(str, lock.waiters)))] if lock.waiters else []
    return [*stop, shlex.join(("mv", lock.path, f"{lock.path}.old"))]


def _misfits(builds: Sequence[KernelBuild], facts: Facts) -> list[tuple[KernelBuild, str, str]]:
    """Build, what it was built for, what is there now: each only where both are known and nobody is building."""
    found = []
    for build in builds:
        if build.lock is not None or not (build.built or build.stamp):
            continue
        for was, now, fits in _pairs(build, facts):
            if was and now and not fits(was, now):
                found.append((build, was, now))
    return found


def _pairs(build: KernelBuild, facts: Facts) -> list[tuple[str, str, Callable[[str, str], bool]]]:
    """Was, is, and whether they fit; the texts are what a person sees, too."""
    stamp, env = build.stamp, facts.env
    torch = env.torch
    nvcc = facts.tools.cuda_home or facts.tools.programs.get("nvcc")
    cuda = (nvcc.version if nvcc else "") or (torch.cuda if torch else "")
    pairs: list[tuple[str, str, Callable[[str, str], bool]]] = [
        (_named("CUDA", minor(stamp.get("cuda", ""))), _named("CUDA", minor(cuda)), _equal),
        (_named("Python", minor(stamp.get("python", ""))), _named("Python", minor(env.version)), _equal),
        (
            _named("torch", release(stamp.get("torch", ""))),
            _named("torch", release(torch.version) if torch else ""),
            _equal,
        ),
        (stamp.get("include", ""), f"{torch.folder}/include" if torch and torch.folder else "", _equal),
    ]
    archs = stamp.get("archs", "")
    for capability in sorted({gpu.capability for gpu in facts.gpu.devices if gpu.capability}):
        pairs.append((_named("sm", archs), _named("GPU", capability), _has_code))
    return pairs


def _named(name: str, value: str) -> str:
    return f"{name} {value}" if value else ""


def _equal(was: str, now: str) -> bool:
    return was == now


def _has_code(was: str, now: str) -> bool:
    """Whether a GPU runs code for ``sm 80,86+PTX``, or compiles its PTX; a suffix such as ``90a`` is passed over."""
    mine = numbers(now)
    for arch in was.split(" ", 1)[1].split(","):
        match = re.fullmatch(r"(\d+\d)[a-z]?(\+PTX)?", arch.strip())
        # A way of writing that we do not know is no reason to throw a build away.
        if match is None or runs(mine, f"{'compute' if match[2] else 'sm'}_{match[1]}"):
            return True
    return False


def plan(builds: Sequence[KernelBuild], facts: Facts, waits: Callable[[kernels.Process], bool]) -> list[Action]:
    """Stop who waits for a stale lock, move the lock aside; move a build for something else aside, whole."""
    actions = []
    for lock in (build.lock for build in builds if build.lock and _is_stale(build.lock)):
        path = Path(lock.path)

        def unlock(doing: Doing, path: Path = path) -> None:
            _unlock(path, waits, doing)

        text = _("Move the stale lock {path} aside").format(path=path)
        if lock.waiters:
            text = _("Stop the {count} processes that wait, and move the stale lock {path} aside").format(
                count=len(lock.waiters), path=path
            )
        actions.append(Action(text, tuple(_unlocking(lock)), unlock))
    for name in dict.fromkeys(build.path for build, _was, _now in _misfits(builds, facts)):

        def aside(doing: Doing, path: Path = Path(name)) -> None:
            now = kernels.read_lock(path / "lock", waits)
            if now is not None:
                raise _changed(now)
            doing.move_aside(path)

        text = _("Move the build {path} aside").format(path=name)
        actions.append(Action(text, (shlex.join(("mv", name, f"{name}.old")),), aside))
    return actions


def _changed(lock: Lock) -> UcllmError:
    return UcllmError(
        "build.in-use",
        _("The lock {path} was left alone.").format(path=lock.path),
        _("Someone has begun to build there: {pids}.").format(pids=", ".join(map(str, lock.owners)) or "?"),
        _("Wait until it has finished, then run the same command again."),
    )


def _unlock(path: Path, waits: Callable[[kernels.Process], bool], doing: Doing) -> None:
    """What is so now counts, not what the facts said: minutes may lie between."""
    lock = kernels.read_lock(path, waits)
    if lock is None:
        return
    if not _is_stale(lock):
        raise _changed(lock)
    if lock.waiters:
        doing.say(_("stopping {pids}").format(pids=", ".join(map(str, lock.waiters))))
        _stop(lock)
        lock = kernels.read_lock(path, waits)
        if lock is None:
            return
        if not _is_stale(lock) or lock.waiters:
            raise _changed(lock)
    doing.move_aside(path)


def _stop(lock: Lock) -> None:
    """End the processes politely. Raises :class:`UcllmError` if one is not ours or does not end."""
    foreign = [pid for pid in lock.waiters if _uid(pid) not in (None, os.getuid())]
    if not foreign:
        for pid in lock.waiters:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while any(map(_lives, lock.waiters)) and time.monotonic() < end:
            time.sleep(0.1)
    left = foreign or [pid for pid in lock.waiters if _lives(pid)]
    if left:
        pids = " ".join(map(str, left))
        raise UcllmError(
            "build.waiters",
            _("Processes that wait for the lock could not be stopped: {pids}.").format(pids=pids),
            _("They would crash if the lock went away, so it was left alone."),
            _("Stop them (`kill {pids}`), then run the same command again.").format(pids=pids),
        )


def _uid(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _lives(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not asked how (a zombie) does not."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except (OSError, IndexError):
        return False
