"""The process's own streams: what happens when one is closed or full, or when nobody reads it any more."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from pipeline.errors import UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = range(3)


class UnwritableError(UcllmError):
    """Standard output takes nothing: what the command had to say is lost, so it does not end well."""

    def __init__(self, why: str) -> None:
        hint = _("Send it to the terminal, or to a file on a disk with room.")
        super().__init__("output.not-writable", _("Cannot write to standard output."), why, hint)


class _Stream(io.FileIO):
    """Where standard output and standard error end.

    A reader who went away (`ucllm doctor | head`) is no failure of ours, and of standard error there is nobody to tell.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # The rest goes nowhere: else Python fails once more when it flushes at its end, with a code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == STDERR or isinstance(error, BrokenPipeError):
                return memoryview(data).nbytes
            raise UnwritableError(error.strerror or str(error)) from error


def prepare() -> None:
    """Make the three streams usable, however this process was started.

    Raises :class:`UnwritableError` when standard output is closed.
    """
    closed = [number for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)) if stream is None]
    for number in closed:
        # Else the next file that is opened gets this number, and what children print goes into it.
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
        os.set_inheritable(number, True)
    if STDIN in closed:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for good
    encoding = "utf-8" if STDOUT in closed else sys.stdout.encoding
    sys.stdout = _writer(STDOUT, encoding)
    sys.stderr = _writer(STDERR, encoding if STDERR in closed else sys.stderr.encoding)
    if STDOUT in closed:
        raise UnwritableError(_("It is closed."))


def _writer(number: int, encoding: str) -> io.TextIOWrapper:
    """A text stream. What its encoding lacks, such as half a character in a file's name, is shown escaped."""
    raw = _Stream(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True)
