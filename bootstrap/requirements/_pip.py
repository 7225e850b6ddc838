"""The pip that Python brings with it, put into the environment without a network: for ``env.python``, ``env.pip``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts
from bootstrap.requirements import Action, Doing, _aside
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: Where pip's metadata is left, ``ensurepip`` believes that it is installed.
METADATA = r"pip-.*\.dist-info"
#: All of pip: its package and its commands, and not those of others, such as pip-compile.
EVERYTHING = rf"pip([0-9]+(\.[0-9]+)?)?|{METADATA}"


def ensurepip(python: Path) -> tuple[str, ...]:
    """The command that lets ``python`` install the pip it brings."""
    return (str(python), "-I", "-m", "ensurepip", "--upgrade", "--default-pip")


def action(requirement_id: str, text: str, facts: Facts, old: str) -> Action:
    """Move aside what the expression ``old`` matches in ``bin`` and site-packages, then let ``ensurepip`` install."""
    python, workspace = Path(facts.env.interpreter), Workspace(Path(facts.workspace))
    folders = (python.parent, Path(facts.env.path) / "lib" / f"python{facts.env.minor}" / "site-packages")
    argv = ensurepip(python)

    def put(doing: Doing) -> None:
        # Asked before anything is moved: some systems' Pythons have no ensurepip.
        able = host.capture((str(python), "-I", "-m", "ensurepip", "--version"), timeout_s=30)
        if able.code != 0:
            raise UcllmError(
                "env.no-ensurepip",
                _("This Python brings no pip with it."),
                able.stderr.strip(),
                _("On Debian and Ubuntu, `apt install python3-venv` provides what is missing."),
            )
        for folder in folders:
            for path in sorted(folder.iterdir()):
                if re.fullmatch(old, path.name):
                    doing.move_aside(path)
        host.run_logged(argv, log=workspace.state / "logs" / f"{requirement_id}.txt")

    aside = _aside.matching(facts, [str(folder) for folder in folders], old)
    return Action(text, (*aside, shlex.join(argv)), put)
