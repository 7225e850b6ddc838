"""What a script of ours says in another Python, told apart from all that its start-up files and its modules print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrap import host

#: Begins each line of an answer on the standard output; the script gets it as its first argument.
MARK = "ucllm-answer:"


def ask(
    python: str,
    script: Path,
    *args: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> tuple[list[Any], host.Done]:
    """Run ``script`` alone in ``python``, with further ``options``: the values it said, and how its process ended.

    Nothing is written beside what it reads (``-B``). Raises as :func:`bootstrap.host.capture` does.
    """
    argv = (python, "-I", "-B", *options, str(script), MARK, *args)
    done = host.capture(argv, timeout_s=timeout_s, env=env)
    return said(done.stdout), done


def said(output: str) -> list[Any]:
    """The values on the marked lines of ``output``."""
    values = []
    for line in output.split("\n"):
        if line.startswith(MARK):
            try:
                values.append(json.loads(line[len(MARK) :]))
            except ValueError:  # cut short by the end of the process
                continue
    return values
