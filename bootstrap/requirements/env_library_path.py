"""``env.library-path``: LD_LIBRARY_PATH leads to the environment's own libraries (Step 0-2)."""

from __future__ import annotations

import re
import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: A toolkit's folder: /usr/local/cuda-12.2/lib64, /apps/cuda/12.2.0/lib64.
_CUDA = re.compile(r"cuda[-_/](?P<major>\d{1,2})(\.(?P<minor>\d+))?(?![\d])", re.IGNORECASE)


def check(profile: Profile, facts: Facts) -> Finding:
    """No empty entry, and no other CUDA's folder before the environment's ``lib``. Judged by the folders' names."""
    value = facts.machine.variables.get("LD_LIBRARY_PATH")
    if not value:
        return ok(_("LD_LIBRARY_PATH is not set"), _("looked at LD_LIBRARY_PATH"))
    looked = f"LD_LIBRARY_PATH={value}"
    entries = value.split(":")
    own = f"{facts.env.path}/lib"
    # Only an active environment has its `lib` there; without it every order is the user's own affair.
    before = entries[: entries.index(own)] if own in entries else []
    foreign = [entry for entry in before if _other_cuda(entry, profile)]
    evidence, kept = [looked], [entry for entry in entries if entry and entry not in foreign]
    if "" in entries:
        evidence.append(_("an empty entry stands for the current folder: libraries lying there are loaded"))
    for entry in foreign:
        evidence.append(
            _("{entry} comes before {own} and holds another CUDA than {wanted}").format(
                entry=entry, own=own, wanted=profile.cuda.version if profile.cuda else ""
            )
        )
    if len(evidence) == 1:
        return ok(_("LD_LIBRARY_PATH has nothing foreign"), looked)
    command = f"export LD_LIBRARY_PATH={shlex.quote(':'.join(kept))}" if kept else "unset LD_LIBRARY_PATH"
    remedy = Remedy(_("Set it without them, in this shell and where it is set."), (command,), needs=("shell",))
    return warn(_("LD_LIBRARY_PATH makes programs load other libraries."), evidence, remedy)


def _other_cuda(entry: str, profile: Profile) -> bool:
    """Whether the folder's name says another CUDA than the profile's. A name without a version says nothing."""
    match = _CUDA.search(entry)
    if match is None or profile.cuda is None:
        return False
    major, _dot, minor = profile.cuda.version.partition(".")
    return match["major"] != major or bool(match["minor"] and minor and match["minor"] != minor.split(".")[0])


REQUIREMENT = Requirement(
    "env.library-path",
    N_("LD_LIBRARY_PATH"),
    N_("The first library of a name is loaded: another CUDA's or C++ library ends in crashes that name neither."),
    "0-2",
    check,
    reads=("machine", "env"),
)
