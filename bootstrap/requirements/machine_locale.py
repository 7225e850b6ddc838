"""``machine.locale``: Python reads and writes text as UTF-8."""

from __future__ import annotations

import codecs

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: The variables that decide, in the order in which they do.
DECIDING = ("PYTHONUTF8", "PYTHONCOERCECLOCALE", "LC_ALL", "LC_CTYPE", "LANG")


def check(_profile: Profile, facts: Facts) -> Finding:
    """The encoding that Python takes for text files where a program names none."""
    variables = facts.machine.variables
    given = ", ".join(f"{name}={variables[name]}" for name in DECIDING if name in variables)
    encoding = facts.machine.encoding
    looked = _("Python's encoding here: {encoding}; {variables}").format(
        encoding=encoding or "?", variables=given or _("no variable of the locale is set")
    )
    if not encoding:
        return unknown(_("The encoding of text could not be told."), (looked,))
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        name = encoding
    if name == "utf-8":
        return ok("UTF-8", looked)
    commands = ["unset PYTHONUTF8"] if variables.get("PYTHONUTF8") == "0" else []
    text = _("Set the locale; where the system has no C.UTF-8, `export PYTHONUTF8=1` does the same for Python.")
    remedy = Remedy(text, (*commands, "export LC_ALL=C.UTF-8"), needs=("shell",))
    return fail(_("Text is read as {encoding}, not as UTF-8.").format(encoding=encoding), (looked,), remedy)


REQUIREMENT = Requirement(
    "machine.locale",
    N_("UTF-8 locale"),
    N_("The training's programs open Japanese text without naming an encoding; another one breaks it or ends them."),
    "0-0",
    check,
)
