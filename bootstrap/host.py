"""The one door per side effect of the tool: run a process, fetch a file, move something aside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.process import stop, tail
from pipeline.runs import sha256_file

#: Waits before the second, third, … attempt of a download, in seconds.
RETRY_WAITS_S = (0.5, 2.0, 5.0)
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Done:
    """A finished process: its exit code and its output."""

    code: int
    stdout: str
    stderr: str


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
        raise TimeoutError(
            _("{command} did not end in {seconds} s").format(command=argv[0], seconds=timeout_s)
        ) from error
    return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def run_logged(argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a long command, its output appended to ``log``. Raises :class:`UcllmError` with the log's end if it fails.

    The child is stopped, with all it started, when this process is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(("\n$ " + " ".join(argv) + "\n").encode())
        output.flush()
        child = subprocess.Popen(
            list(argv),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
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


def move_aside(path: Path, backups: Path) -> Path:
    """Move ``path`` into ``backups`` under a name of its own and return that; nothing is ever deleted."""
    backups.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        target = backups / (f"{path.name}-{stamp}" + (f"-{number}" if number else ""))
        if not target.exists():
            path.rename(target)
            return target
    raise FileExistsError(backups)


def fetch(
    url: str, target: Path, sha256: str, *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Download ``url`` to ``target``: to ``.part``, resumed, its sha256 checked, then renamed.

    ``progress`` gets bytes done and in all (0 when the server does not say). Connections that break, stall or answer
    5xx are tried again. Raises :class:`UcllmError`; a file with another sha256 is removed and never becomes ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reason = ""
    for wait in (0.0, *RETRY_WAITS_S):
        time.sleep(wait)
        reason, final = _download(url, part, progress)
        if final:
            break
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
    if actual != sha256:
        part.unlink()
        raise UcllmError(
            "fetch.wrong-hash",
            _("{name} is not the file it should be; it was thrown away.").format(name=target.name),
            _("Its sha256 is {actual}, not {expected}.").format(actual=actual, expected=sha256),
            _("Try again; if it stays so, the source has changed and must not be used."),
        )
    part.replace(target)


def _download(url: str, part: Path, progress: Callable[[int, int], None]) -> tuple[str, bool]:
    """One attempt. Returns why it failed (empty: it did not) and whether another attempt would be pointless."""
    import http.client
    import urllib.error
    import urllib.request

    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310  http, https or file, from the lock
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310  as above
            resumed = getattr(answer, "status", None) == 206
            done = done if resumed else 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = done + length if length else 0
            with part.open("ab" if resumed else "wb") as stream:
                while block := answer.read(1 << 18):
                    stream.write(block)
                    done += len(block)
                    progress(done, total)
            if total and done < total:
                return _("The connection ended early."), False
            return "", True
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is already whole, or longer than the file
            with contextlib.suppress(OSError):
                part.unlink()
            return f"HTTP {error.code}", False
        return f"HTTP {error.code} {error.reason}", error.code < 500 and error.code not in (408, 429)
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)), False
