"""Runs in the environment's own Python with ``-S``, which leaves start-up files out: does what was left out, aloud.

Prints the path of each ``.pth`` file and of ``sitecustomize`` before it is run, in the lines of
:mod:`bootstrap.facts.answer`, and an empty path when all have been: the last one named has ended the process.
"""

# No path module here, as in probe.py.
# ruff: noqa: PTH118

import importlib.machinery
import json
import os
import site
import sys


def main() -> None:
    """Run Python's own ``site`` with a word before each file."""
    # Standard error, where the start-up files' prints go too, is for the other child to hear.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    add, customize = site.addpackage, site.execsitecustomize

    def say(path: str) -> None:
        answer.write("\n" + sys.argv[1] + json.dumps(path) + "\n")
        answer.flush()

    def addpackage(folder: str, name: str, known: "set[str] | None") -> "set[str] | None":
        say(os.path.join(folder, name))
        return add(folder, name, known)

    def execsitecustomize() -> None:
        found = importlib.machinery.PathFinder.find_spec("sitecustomize")
        if found and found.origin:
            say(found.origin)
        customize()

    site.addpackage, site.execsitecustomize = addpackage, execsitecustomize  # type: ignore[assignment]  # takes text only
    site.main()
    say("")
    os._exit(0)


if __name__ == "__main__":
    main()
