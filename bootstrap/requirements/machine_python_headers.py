"""``machine.python-headers``: the headers of the environment's Python are there, for everything compiled against it."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Look for ``Python.h`` where the environment's Python says it is."""
    looked = _("looked for Python.h in {path}").format(path=facts.env.include or "?")
    if facts.env.has_headers is None:
        return unknown(_("It cannot be told where the headers of this Python are."), (looked,))
    if facts.env.has_headers:
        return ok(_("Python.h is there"), looked)
    short = facts.env.minor
    text = _("Install the headers of Python {version}.").format(version=short)
    remedy = Remedy(text, (f"sudo apt-get install python{short}-dev",), needs=("root",))
    if facts.env.kind == "conda":  # its package of Python has them
        command = shlex.join(
            ("conda", "install", "-p", facts.env.path, "--force-reinstall", f"python={facts.env.version}")
        )
        remedy = Remedy(text, (command,), needs=("network",))
    return fail(_("The headers of Python {version} are missing.").format(version=short), (looked,), remedy)


REQUIREMENT = Requirement(
    "machine.python-headers",
    N_("Python headers"),
    N_("Without them nothing can be compiled for Python: «fatal error: Python.h: No such file or directory»."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("env",),
)
