"""``env.windows``: packages are within the versions that the pinned sources work with (Step 0-3)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Each installed package that the profile has a window for lies in it. A missing one is for other checks."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    if not profile.windows:
        return skipped(_("this profile has no windows of versions"))
    seen, wrong, unread, specs = [], [], [], []
    for name, window in profile.windows.items():
        dist = facts.env.dists.get(name)
        if dist is None:
            continue
        line = f"{name} {dist.version} ({window.versions})"
        seen.append(line)
        try:
            fits = SpecifierSet(window.versions).contains(Version(dist.version), prereleases=True)
        except InvalidVersion:
            unread.append(line)
            continue
        if not fits:
            wrong.append(f"{line}: {window.why}")
            specs.append(f"{name}{window.versions}")
    looked = _("compared {names}").format(names=", ".join(seen))
    if wrong:
        argv = (facts.env.python, "-I", "-m", "pip", "install", *specs)
        remedy = Remedy(_("Install versions that the sources work with."), (shlex.join(argv),), needs=("network",))
        summary = _("{count} packages are outside the versions that the sources work with.").format(count=len(wrong))
        return fail(summary, (looked, *wrong), remedy)
    if unread:
        return unknown(_("A version cannot be compared."), (looked, *unread))
    if not seen:
        return skipped(_("none of {names} is installed").format(names=", ".join(profile.windows)))
    return ok(_("{count} packages in their windows").format(count=len(seen)), looked)


REQUIREMENT = Requirement(
    "env.windows",
    N_("Windows of versions"),
    N_("The pinned Megatron-DeepSpeed and llm-jp-sft call what other versions no longer have."),
    "0-3",
    check,
    needs=("env.packages",),
    reads=("env",),
)
