"""Making the environment anew, whatever its kind: what stands there is kept, and what is half made is seen as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts
from bootstrap.facts.env import UNFINISHED
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, _aside
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _


def unusable(facts: Facts) -> tuple[str, tuple[str, ...]] | None:
    """Why there is nothing to look into: a summary and the evidence; ``None`` for an environment that works."""
    looked = _("looked at {path}").format(path=facts.env.path)
    if facts.env.state == "absent":
        return _("There is no Python environment yet."), (looked,)
    if facts.env.state == "broken":
        return _("The Python environment does not work."), (looked, facts.env.error)
    return None


def unsupported(profile: Profile, facts: Facts) -> str:
    """That its Python is not one of the profile's; empty if it is."""
    if facts.env.minor in profile.pythons:
        return ""
    text = _("Python {version} is not one this profile supports ({supported}).")
    return text.format(version=facts.env.minor, supported=", ".join(profile.pythons))


def actions(facts: Facts, text: str, commands: tuple[str, ...], make: Callable[[], None]) -> list[Action]:
    """Move what is there aside, if anything is, then ``make`` it, which ``text`` and ``commands`` describe."""
    env = Path(facts.env.path)

    def aside(doing: Doing) -> None:
        doing.say(_("the old one is kept in {path}").format(path=doing.move_aside(env)))

    def act(_doing: Doing) -> None:
        env.mkdir(parents=True)
        # Killed at the wrong moment, an environment may work and yet lack something.
        unfinished = env / UNFINISHED
        unfinished.touch()
        make()
        unfinished.unlink()

    old = Action(_("Move the old environment aside"), _aside.commands(facts, str(env)), aside)
    return [*([] if facts.env.state == "absent" else [old]), Action(text, commands, act)]


def venv(facts: Facts, argv: tuple[str, ...]) -> None:
    """Run Python's ``venv``. Raises :class:`UcllmError` that says what some systems leave out."""
    log = Workspace(Path(facts.workspace)).state / "logs" / "env.python.txt"
    try:
        # Nothing is written beside the modules of the Python that it is made from.
        host.run_logged(argv, log=log, env={"PYTHONDONTWRITEBYTECODE": "1"})
    except UcllmError as error:
        hint = _("On Debian and Ubuntu, `apt install python3-venv` provides what is missing.")
        problem = error.problems[0]
        raise UcllmError("env.venv-failed", problem.what, problem.why, hint) from error
