"""``env.numpy``: numpy is one that this torch was built with (Step 0-3)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: The first torch whose wheels are built against numpy 2 (pytorch 2.3.0's release notes).
FIRST_FOR_NUMPY_2 = "2.3"


def check(profile: Profile, facts: Facts) -> Finding:
    """numpy 1 for every torch before 2.3."""
    from packaging.version import InvalidVersion, Version

    torch, numpy = facts.env.torch, facts.env.dists.get("numpy")
    if torch is None:
        return skipped(_("torch is not installed"))
    if numpy is None:
        return skipped(_("numpy is not installed"))
    seen = _("found torch {torch} and numpy {numpy}").format(torch=torch.version, numpy=numpy.version)
    rule = _("torch before {first} needs numpy 1").format(first=FIRST_FOR_NUMPY_2)
    try:
        early, new = Version(torch.version) < Version(FIRST_FOR_NUMPY_2), Version(numpy.version).major >= 2
    except InvalidVersion as error:
        return unknown(_("The versions of torch and numpy cannot be compared."), (seen, str(error)))
    if early and new:
        pinned = next((f"numpy=={pin.version}" for pin in profile.pins if pin.name == "numpy"), "numpy<2")
        argv = (facts.env.python, "-I", "-m", "pip", "install", "--no-deps", pinned)
        remedy = Remedy(_("Install numpy 1."), (shlex.join(argv),), needs=("network",))
        return fail(_("numpy {version} is too new for this torch.").format(version=numpy.version), (seen, rule), remedy)
    return ok(_("numpy {version} fits torch {torch}").format(version=numpy.version, torch=torch.version), seen, rule)


REQUIREMENT = Requirement(
    "env.numpy",
    N_("numpy for this torch"),
    N_("An older torch cannot exchange arrays with numpy 2: «Numpy is not available», in the middle of reading data."),
    "0-3",
    check,
    needs=("env.packages", "env.torch"),
    reads=("env",),
)
