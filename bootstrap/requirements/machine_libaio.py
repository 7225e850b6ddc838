"""``machine.libaio``: header and library of libaio, without which DeepSpeed's async_io cannot be built."""

from __future__ import annotations

import os

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def places(facts: Facts) -> dict[str, str | None]:
    """Where header and library are; empty: nowhere, ``None``: nobody looked."""
    tools = facts.tools
    return {"libaio.h": tools.headers.get("libaio.h"), "libaio.so": tools.libraries.get("libaio")}


def check(profile: Profile, facts: Facts) -> Finding:
    """Both must be found where compiler and linker look."""
    if profile.deepspeed is None or "async_io" not in profile.deepspeed.ops:
        return skipped(_("This profile builds no async_io."), "async_io")
    looked = _("looked for libaio.h and libaio.so in {folders}").format(folders=os.pathsep.join(facts.tools.looked_in))
    found = places(facts)
    if None in found.values():
        return unknown(_("It was not looked for libaio."), (looked,))
    missing = [name for name, place in found.items() if not place]
    if not missing:
        return ok(_("header and library found"), looked, *(place or "" for place in found.values()))
    text = _("Install libaio's development files, or build DeepSpeed without async_io: `DS_BUILD_AIO=0`.")
    remedy = Remedy(text, ("sudo apt-get install libaio-dev",), needs=("root",))
    return fail(_("Not found: {names}.").format(names=", ".join(missing)), (looked,), remedy)


REQUIREMENT = Requirement(
    "machine.libaio",
    N_("libaio"),
    N_("With DS_BUILD_OPS=1 DeepSpeed's installation ends with «Unable to pre-compile async_io» without it."),
    "0-0",
    check,
    reads=("tools",),
)
