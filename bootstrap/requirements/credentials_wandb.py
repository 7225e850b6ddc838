"""``credentials.wandb``: the W&B key, where there is one, is readable by its owner alone; offline needs none."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, ok, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement
from bootstrap.requirements.credentials_huggingface import actions, of_login
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: Values of WANDB_MODE with which nothing is sent; ``dryrun`` is the old name of ``offline``.
SILENT = ("offline", "disabled", "dryrun")


def check(_profile: Profile, facts: Facts) -> Finding:
    """A key in a file must be private, also when W&B is switched off."""
    access = facts.access
    seen = [_("looked for {places}").format(places=", ".join(access.wandb_looked_in))]
    if access.wandb_mode:
        seen.append(f"WANDB_MODE={access.wandb_mode}")
    if access.wandb.source:
        return of_login(access.wandb, seen)
    if access.wandb_mode in SILENT:
        return ok(_("WANDB_MODE is {mode}: no login is needed").format(mode=access.wandb_mode), *seen)
    return skipped(_("not logged in; only needed to log a training to W&B"), *seen)


def plan(_profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
    """Make the file private."""
    return actions(facts.access.wandb)


REQUIREMENT = Requirement(
    "credentials.wandb",
    N_("W&B login"),
    N_("A training that logs to W&B stops to ask for the key, and whoever can read the key can use it."),
    "2-1",
    check,
    plan,
    reads=("access",),
)
