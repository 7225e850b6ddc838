"""The one door per side effect of the tool: run a process, fetch a file."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.process import stop, tail
from pipeline.runs import sha256_file

if TYPE_CHECKING:
    import urllib.request

#: Waits before the second, third, … attempt of a download, in seconds.
RETRY_WAITS_S = (0.5, 2.0, 5.0)
TIMEOUT_S = 60.0

#: For every pip of ours: it asks nothing, and its log holds no progress bars.
PIP_QUIET = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")

_GUARD = Path(__file__).with_name("guard.py")
#: Descriptors that long commands hold as well: the workspace's lock, which must not fall before they have ended.
_kept: list[int] = []


@dataclass(frozen=True)
class Done:
    """A finished process: its exit code and its output."""

    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The last line of its standard error, which says most of a Python that failed; else its exit code."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit {self.code}"


def capture(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Done:
    """Run a short command in the C locale and return what it said.

    Raises ``OSError`` when it cannot be started and ``TimeoutError`` when it does not end; it is killed then.
    """
    clean = {**os.environ, **(env or {}), "LC_ALL": "C.UTF-8", "LANGUAGE": ""}
    try:
        done = subprocess.run(
            list(argv), env=clean, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _too_long(argv, timeout_s) from error
    return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def _too_long(argv: Sequence[str], timeout_s: float) -> TimeoutError:
    return TimeoutError(_("{command} did not end in {seconds} s").format(command=argv[0], seconds=timeout_s))


def output(argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> bytes:
    """Run a short command with exactly these variables; what it wrote to standard output, however it ended.

    Standard error is ours. Raises ``OSError`` when it cannot be started and ``TimeoutError`` when it does not end.
    """
    # Not a pipe: something that it leaves running would hold that open.
    with open(os.memfd_create("output"), "w+b") as answer:  # noqa: PTH123  a descriptor
        try:
            subprocess.run(list(argv), env=env, stdin=subprocess.DEVNULL, stdout=answer, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise _too_long(argv, timeout_s) from error
        answer.seek(0)
        return answer.read()


def run_logged(argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, exact: bool = False) -> None:
    """Run a long command, its output appended to ``log``. Raises :class:`UcllmError` with the log's end if it fails.

    ``env`` is added to this process's variables, or with ``exact`` is all there is.

    It is stopped, with all it started, when this process is interrupted, and also when it is killed: see
    :mod:`bootstrap.guard`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(("\n$ " + " ".join(argv) + "\n").encode())
        output.flush()
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *argv],
            env=dict(env or {}) if exact else {**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(_kept),
        )
        try:
            code = child.wait()
        except BaseException:
            stop(child)
            raise
    if code != 0:
        raise UcllmError(
            "command.failed",
            _("`{command}` failed with exit code {code}.").format(command=" ".join(argv[:6]), code=code),
            _("The end of its log:") + "\n" + tail(log),
            _("Read {log}.").format(log=log),
        )


@contextlib.contextmanager
def kept_open(descriptor: int) -> Iterator[None]:
    """Let every command of :func:`run_logged` in the ``with`` hold ``descriptor`` too."""
    _kept.append(descriptor)
    try:
        yield
    finally:
        _kept.remove(descriptor)


def free_name(path: Path, backups: Path) -> Path:
    """A name of its own for ``path`` in ``backups``, which is made: nothing is ever deleted or written over."""
    backups.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        target = backups / (f"{path.name}-{stamp}" + (f"-{number}" if number else ""))
        if not os.path.lexists(target):
            return target
    raise FileExistsError(backups)


def move(path: Path, target: Path) -> None:
    """Move a file, link or folder, also to another file system: there it is copied whole before it goes."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(path, target)


def fetch(
    url: str, target: Path, sha256: str, *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Download ``url`` to ``target``: to ``.part``, resumed, its sha256 checked, then renamed.

    ``progress`` gets bytes done and in all (0 when the server does not say). Connections that break, stall or answer
    5xx are tried again. Raises :class:`UcllmError`; a file with another sha256 is removed and never becomes ``target``.
    An empty ``sha256`` is one that nobody has published: it is not compared.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(part):
            if not (target.exists() and sha256 in ("", sha256_file(target))):  # another just fetched it
                _fetch(url, target, part, sha256, progress)
    except OSError as error:
        raise not_writable(part, error) from error


def not_writable(part: Path, error: OSError) -> UcllmError:
    """What to say when a fetched file cannot be written."""
    return UcllmError(
        "fetch.not-writable",
        _("Cannot write {path}.").format(path=error.filename or part),
        str(error.strerror or error),
        _("Make room or choose another workspace, then run the same command again."),
    )


@contextlib.contextmanager
def _only_writer(part: Path) -> Iterator[None]:
    """Hold ``part`` against a second process that fetches the same file; it waits. Leaves no empty ``part``."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held it may have renamed or removed it since: then this is no longer the file of that name.
        if part.exists() and part.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)
    try:
        yield
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
        os.close(descriptor)


def _fetch(url: str, target: Path, part: Path, sha256: str, progress: Callable[[int, int], None]) -> None:
    most, waits = part.stat().st_size, list(RETRY_WAITS_S)
    # Killed between the last byte and the rename: nothing is left to ask for.
    reason, final = "", most > 0 and sha256_file(part) == sha256
    while not final:
        reason, final = _download(url, part, progress)
        size = part.stat().st_size
        if size > most:  # it came further than ever: a bad line is no reason to give up
            most, waits = size, list(RETRY_WAITS_S)
        if not waits:
            break
        if not final:
            time.sleep(waits.pop(0))
    if reason:
        raise UcllmError(
            "fetch.failed",
            _("Cannot download {name}.").format(name=target.name),
            reason,
            _(
                "Check the network or the proxy settings, then run the same command again; "
                "it continues where it stopped."
            ),
        )
    actual = sha256_file(part)
    if sha256 not in ("", actual):
        part.unlink()
        raise UcllmError(
            "fetch.wrong-hash",
            _("{name} is not the file it should be; it was thrown away.").format(name=target.name),
            _("Its sha256 is {actual}, not {expected}.").format(actual=actual, expected=sha256),
            _("Try again; if it stays so, the source has changed and must not be used."),
        )
    part.replace(target)


def request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """A request for ``url``. A login in it becomes a header, which redirects do not carry to other hosts."""
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    made = urllib.request.Request(parts._replace(netloc=place).geturl(), headers=dict(headers))  # noqa: S310  http, https or file, from the lock or pip's settings
    if at:
        token = base64.b64encode(urllib.parse.unquote(login).encode()).decode("ascii")
        made.add_unredirected_header("Authorization", f"Basic {token}")
    return made


def _download(url: str, part: Path, progress: Callable[[int, int], None]) -> tuple[str, bool]:
    """One attempt. Returns why it failed (empty: it did not) and whether another attempt would be pointless."""
    import http.client
    import urllib.error
    import urllib.request

    done = part.stat().st_size
    wanted = request(url, {"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(wanted, timeout=TIMEOUT_S) as answer:  # noqa: S310  as above
            resumed = getattr(answer, "status", None) == 206
            done = done if resumed else 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = done + length if length else 0
            with part.open("r+b") as stream:
                stream.truncate(done)
                stream.seek(done)
                while block := answer.read1(1 << 18):
                    _write(stream, block, part)
                    done += len(block)
                    progress(done, total)
            if total and done < total:
                return _("The connection ended early."), False
            return "", True
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # longer than the file, or not of this file
            error.close()
            os.truncate(part, 0)
            return f"HTTP {error.code}", False
        return failure(error)


def failure(error: Exception) -> tuple[str, bool]:
    """Why a request failed, and whether another would be pointless."""
    import http.client
    import urllib.error

    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}", error.code < 500 and error.code not in (408, 429)
    reason = getattr(error, "reason", error)
    missing = isinstance(reason, FileNotFoundError)  # of a file:// address
    return str(reason), missing or isinstance(error, http.client.InvalidURL)


def without_logins(text: str) -> str:
    """``text`` with no login in its addresses."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _write(stream: BinaryIO, block: bytes, part: Path) -> None:
    """Write to disk at once, so that a full disk is not taken for a broken connection."""
    try:
        stream.write(block)
        stream.flush()
    except OSError as error:
        raise not_writable(part, error) from error
