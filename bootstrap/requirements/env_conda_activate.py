"""``env.conda-activate``: a batch shell can activate the environment (Step 0-1)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Miniconda has the file that defines ``conda activate``; what is in ``~/.bashrc`` does not count in a job."""
    if profile.conda is None:
        return skipped(_("this profile needs no conda"))
    if not facts.conda.prefix or facts.conda.shell_hook is None:
        looked = _("looked for bin/conda in {folders}").format(folders=", ".join(facts.conda.looked_in))
        return unknown(_("There is no Miniconda to look at."), (looked,))
    path = f"{facts.conda.prefix}/etc/profile.d/conda.sh"
    looked = _("looked for {path}").format(path=path)
    if facts.conda.shell_hook:
        command = f". {shlex.quote(path)} && conda activate {shlex.quote(facts.env.path)}"
        return ok(
            _("`conda activate` works in a batch shell"), looked, _("in a script: {command}").format(command=command)
        )
    prefix = facts.conda.prefix
    argv = (f"{prefix}/bin/conda", "install", "--prefix", prefix, "--force-reinstall", "--yes", "conda")
    remedy = Remedy(_("Install conda again into its own folder."), (shlex.join(argv),), needs=("network",))
    return fail(_("A batch shell cannot activate the environment."), (looked, _("it is not there")), remedy)


REQUIREMENT = Requirement(
    "env.conda-activate",
    N_("`conda activate` in a batch shell"),
    N_("A job's shell does not read ~/.bashrc; without this file it runs outside the environment."),
    "0-1",
    check,
    needs=("env.miniconda",),
    reads=("conda", "env"),
)
