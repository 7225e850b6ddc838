"""``train.smoke``: a training of two steps goes through, from text to a model (Step 2)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.facts.smoke import ENGINE, folder_in
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import SMOKE, Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Judge the training that the smoke section ran."""
    smoke = facts.smoke
    looked = _("ran tokenizer, corpus and pretrain with engine {engine} in {folder}, in {seconds:.1f} s").format(
        engine=smoke.engine, folder=folder_in(Workspace(Path(facts.workspace)).state), seconds=smoke.seconds
    )
    if smoke.error:
        evidence = [looked, *smoke.error.splitlines()]
        if not smoke.log:
            return fail(_("The two-step training failed."), evidence, Remedy(_("Mend what the error names.")))
        remedy = Remedy(
            _("Read the log: a training of your own would end in the same way."),
            (f"tail -n 50 {shlex.quote(smoke.log)}",),
        )
        return fail(_("The two-step training failed."), [*evidence, _("log: {path}").format(path=smoke.log)], remedy)
    if smoke.engine and smoke.engine != ENGINE:
        text = _("the two-step training of engine {engine} is not in this version")
        return skipped(text.format(engine=smoke.engine))
    if not smoke.steps or smoke.loss is None:
        return unknown(_("The two-step training left no result."), (looked,))
    text = _("{steps} steps trained in {seconds:.1f} s, loss {loss:.2f}")
    return ok(text.format(steps=smoke.steps, seconds=smoke.seconds, loss=smoke.loss), looked)


REQUIREMENT = Requirement(
    "train.smoke",
    N_("Two training steps"),
    N_("Every part can look right and training still fail; this runs it, small, before hours are spent."),
    "2",
    check,
    needs=("env.packages",),
    reads=("smoke",),
    tier=SMOKE,
)
