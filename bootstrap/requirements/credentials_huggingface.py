"""``credentials.huggingface``: the login for the Hub, where there is one, is readable by its owner alone."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap.facts import Facts, Login
from bootstrap.findings import Finding, Remedy, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: The owner may read and write, nobody else anything.
PRIVATE = 0o600
#: What group and others may do.
_OTHERS = 0o077


def check(_profile: Profile, facts: Facts) -> Finding:
    """Without a login nothing is published, and nothing else is missing."""
    login = facts.access.huggingface
    seen = [_("looked for {places}").format(places=", ".join(facts.access.looked_in))]
    if facts.access.hub_offline:
        seen.append(_("HF_HUB_OFFLINE is set: nothing can be uploaded, and nothing is fetched from the Hub"))
    if not login.source:
        return skipped(_("not logged in; only needed to upload"), *seen)
    return of_login(login, seen)


def of_login(login: Login, seen: list[str]) -> Finding:
    """The finding for a login that is there: its file, if it is in one, must be private."""
    if login.source == "variable":
        return ok(_("logged in by {name}").format(name=login.path), *seen)
    if not login.mode:
        return unknown(_("The mode of {path} could not be read.").format(path=login.path), seen)
    seen = [*seen, _("{path} has mode {mode}").format(path=login.path, mode=login.mode)]
    if not int(login.mode, 8) & _OTHERS:
        return ok(_("logged in by {name}").format(name=login.path), *seen)
    summary = _("Other users of this machine can reach the login in {path}.").format(path=login.path)
    remedy = Remedy(_("Make the file private."), (_command(login),), automatic=True)
    return warn(summary, seen, remedy)


def _command(login: Login) -> str:
    return shlex.join(("chmod", f"{PRIVATE:o}", login.path))


def actions(login: Login) -> list[Action]:
    """Make the file of a login private, if it is not."""
    if not login.mode or not int(login.mode, 8) & _OTHERS:
        return []

    def act(doing: Doing) -> None:
        doing.chmod(Path(login.path), PRIVATE)

    return [Action(_("Make {path} private").format(path=login.path), (_command(login),), act)]


def plan(_profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
    """Make the file private."""
    return actions(facts.access.huggingface)


REQUIREMENT = Requirement(
    "credentials.huggingface",
    N_("Hugging Face login"),
    N_("Uploads need it, and whoever can read it can publish in your name."),
    "3-2",
    check,
    plan,
    reads=("access",),
)
