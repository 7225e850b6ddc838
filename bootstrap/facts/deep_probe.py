"""Runs inside the environment's own Python (3.8 or newer): imports modules, or compares files with their hashes.

``deep_probe.py MARK imports SECONDS PRINTED torch …`` says one value before and one after each import, so that a module
which kills the process, or does not come to an end, is known; what the modules print goes to the file PRINTED.
``deep_probe.py MARK files`` says one value. Values are lines of the standard output that begin with MARK
(:mod:`bootstrap.facts.answer`).
"""

# No path module here, as in probe.py: it would be part of what is measured.
# ruff: noqa: PTH116, PTH118, PTH123, PTH208

import base64
import csv
import hashlib
import importlib
import json
import os
import re
import signal
import sys
import time

#: What a file of RECORD is read by, in bytes.
BLOCK = 1 << 20


def imports(names: "list[str]", seconds: float, say: "object") -> None:
    """Import each module and say how that went: its error (empty: none) and its seconds.

    One that hangs ends this process by an alarm, which also reaches compiled code: after half of the ``seconds`` that
    are left, so that time remains for the others; the last one may use all.
    """
    end = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for name in names:
        began, error = time.monotonic(), ""
        limit = max(0.1, (end - began) / (1 if name == names[-1] else 2))
        say({"importing": name, "limit": limit})  # type: ignore[operator]  # a function; Callable would have to be imported
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            importlib.import_module(name)
        except BaseException as caught:  # noqa: BLE001  also SystemExit: a module that leaves is one that does not import
            lines = str(caught).strip().splitlines()
            error = "{}: {}".format(type(caught).__name__, lines[0] if lines else "")
        signal.setitimer(signal.ITIMER_REAL, 0)
        say({"imported": name, "error": error, "seconds": time.monotonic() - began})  # type: ignore[operator]  # as above


def _digest(path: str, algorithm: str) -> str:
    """A file's hash as RECORD writes it: URL-safe base64 without padding."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as stream:
        while True:
            block = stream.read(BLOCK)
            if not block:
                break
            digest.update(block)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode("ascii")


def _rows(info: str) -> "list[list[str]]":
    """The rows of a RECORD; none for a distribution that conda put there.

    conda changes files after their RECORD was written (paths inside them), so the hashes there say nothing.
    """
    try:
        with open(os.path.join(info, "INSTALLER"), encoding="utf-8", errors="replace") as stream:
            if stream.read().strip() == "conda":
                return []
    except OSError:
        pass  # nobody says who installed it
    try:
        with open(os.path.join(info, "RECORD"), encoding="utf-8", errors="replace", newline="") as stream:
            return [row for row in csv.reader(stream) if len(row) == 3]
    except (OSError, csv.Error):
        return []


def _recorded(folder: str, names: "list[str]") -> "dict[str, tuple[set[str], set[str]]]":
    """Each recorded file below ``folder``: the hashes it may have, and the distributions that own it.

    Two distributions may own one file (``google/__init__.py``); whichever was installed last wrote it.
    """
    found: dict[str, tuple[set[str], set[str]]] = {}
    for entry in names:
        if not entry.endswith(".dist-info") or entry.startswith("~"):
            continue
        dist = re.sub(r"[-_.]+", "-", entry[: -len(".dist-info")].rsplit("-", 1)[0]).lower()
        for name, expected, _size in _rows(os.path.join(folder, entry)):
            if expected.partition("=")[0] in hashlib.algorithms_available and not name.endswith((".pyc", "/RECORD")):
                hashes, owners = found.setdefault(os.path.normpath(os.path.join(folder, name)), (set(), set()))
                hashes.add(expected)
                owners.add(dist)
    return found


def files(folders: "list[str]") -> "dict[str, object]":
    """Compare every recorded file with its hash.

    Commands in ``bin`` are only looked for: they hold the environment's path, and differ when it was moved.
    """
    checked = 0
    unread: list[str] = []
    wrong: dict[str, dict[str, list[str]]] = {"changed": {}, "missing": {}}
    for folder in dict.fromkeys(os.path.realpath(item) for item in folders):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for path, (hashes, owners) in _recorded(folder, names).items():
            inside = path.startswith(folder + os.sep)
            try:
                if inside:
                    same = any(_digest(path, item.partition("=")[0]) == item.partition("=")[2] for item in hashes)
                else:
                    same = bool(os.stat(path))
                kind = "" if same else "changed"
            except FileNotFoundError:
                kind = "missing"
            except OSError as error:
                unread.append(f"{path}: {error.strerror}")
                continue
            checked += 1
            for dist in owners if kind else ():
                wrong[kind].setdefault(dist, []).append(path)
    return {**wrong, "unread": unread, "checked": checked}


def main() -> None:
    """Do what the second argument names."""
    mark, what, *more = sys.argv[1:]
    # What modules print while they are imported must not mix with the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: "object") -> None:
        answer.write("\n" + mark + json.dumps(value) + "\n")
        answer.flush()

    if what == "imports":
        # Programs that an import starts may outlive it: they must not hold what our caller reads to its end.
        seconds, printed, *names = more
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        imports(names, float(seconds), say)
    else:
        # Its own: what it adopts of another Python is not ours to judge, and may be large.
        own = os.path.join(sys.prefix, "")
        say(files([path for path in sys.path if path.startswith(own) and path.endswith("-packages")]))
    # Threads that an imported module left, and its clean-up at exit, must not keep or break what is already said.
    os._exit(0)


if __name__ == "__main__":
    main()
