"""``env.libstdcxx``: the C++ library that loads has what the machine's compiler asks of it (Step 0-2)."""

from __future__ import annotations

import re

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: The newest symbol version of each gcc's first release, which what it compiles may ask for: GLIBCXX_3.4.<n>.
#: Source: "ABI Policy and Guidelines" in the manual of libstdc++.
NEEDS = {5: 21, 6: 22, 7: 23, 8: 25, 9: 26, 10: 28, 11: 29, 12: 30, 13: 31, 14: 33}
#: Without a compiler nothing is built here. gcc 9.1's, with which most wheels of that time can be loaded.
DEFAULT = 26
#: Red Hat's toolsets link what the system's library lacks into what they build.
TOOLSETS = "/opt/rh/"


def check(profile: Profile, facts: Facts) -> Finding:
    """An older library breaks extensions built here only at their import (``GLIBCXX_3.4.29 not found``)."""
    path = facts.binaries.libstdcxx
    looked = _("looked for libstdc++.so.6 in the environment, LD_LIBRARY_PATH and the system's folders")
    if not path:
        return unknown(_("No libstdc++ was found."), [looked])
    binary = facts.binaries.files.get(path)
    numbers = [int(part) for part in binary.provides.split(".")] if binary and binary.provides else []
    found = _("{path} provides GLIBCXX_{version}").format(path=path, version=binary.provides if binary else "")
    if not binary or not numbers:
        reason = binary.error if binary and binary.error else _("{path} names no GLIBCXX version").format(path=path)
        return unknown(_("It cannot be told what this libstdc++ provides."), [looked, reason])
    compiler = facts.tools.programs.get("g++")
    if compiler and compiler.path.startswith(TOOLSETS):
        note = _("{path} links what the system's library lacks into what it builds").format(path=compiler.path)
        return ok(found, looked, note)
    need = DEFAULT
    reason = _("GLIBCXX_3.4.{n} is needed by most packages (there is no g++ here)").format(n=need)
    major = re.match(r"\d+", compiler.version) if compiler else None
    if compiler and major:
        # A compiler that nvcc refuses is machine.compiler's matter, and builds nothing here.
        number = min(int(major[0]), profile.cuda.newest_gcc) if profile.cuda else int(major[0])
        need = NEEDS.get(number, min(NEEDS.values()) if number < min(NEEDS) else max(NEEDS.values()))
        reason = _("GLIBCXX_3.4.{n} is what {path} (gcc {major}) may ask for").format(
            n=need, path=compiler.path, major=number
        )
    if numbers >= [3, 4, need]:
        return ok(found, looked, reason)
    return fail(
        _("The libstdc++ that loads is too old: extensions built here do not load."),
        [looked, found, reason],
        _remedy(facts, path, need),
    )


def _remedy(facts: Facts, path: str, need: int) -> Remedy:
    if facts.env.kind == "conda" and path.startswith(f"{facts.env.path}/"):
        text = _("Put a libstdc++ with GLIBCXX_3.4.{n} or newer into the environment.").format(n=need)
        return Remedy(text, (f"conda install -p {facts.env.path} -c conda-forge libstdcxx-ng",), needs=("network",))
    text = _("Let LD_LIBRARY_PATH begin with the folder of a libstdc++ that has GLIBCXX_3.4.{n}.").format(n=need)
    return Remedy(text, ("g++ -print-file-name=libstdc++.so.6",), needs=("shell",))


REQUIREMENT = Requirement(
    "env.libstdcxx",
    N_("the C++ library"),
    N_("With an older libstdc++ what is compiled here does not load: version `GLIBCXX_…' not found."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("binaries", "env", "tools"),
)
