"""``env.python`` where the profile adopts the user's own Python: an environment of ours that shows its packages.

``venv --system-site-packages`` shows the packages of an interpreter, but not those of another virtual environment.
Where the user's Python is one, a ``.pth`` file of ours names its site-packages; its own ``.pth`` files are honoured.
The new environment's own packages come first. Nothing is ever written into what is adopted, not even byte code.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Base, Facts
from bootstrap.facts.answer import MARK, said
from bootstrap.facts.bases import can_be_adopted
from bootstrap.facts.probe import ADOPT
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, _anew
from bootstrap.versions import minor, numbers
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: For one import of torch, in seconds: its libraries are large, and may lie on a network file system.
IMPORT_TIMEOUT_S = 300.0
_IMPORT = f"import json, torch; print('\\n{MARK}' + json.dumps(torch.__file__))"


def check(profile: Profile, facts: Facts) -> Finding:
    """The environment is ours and its torch is the adopted Python's. Which Python the shell offers now is no matter."""
    env, unusable = facts.env, _anew.unusable(facts)
    if unusable:
        return _failing(profile, facts, *unusable)
    looked = _("looked at {path}").format(path=env.path)
    version = _("Python {version}").format(version=env.version)
    if not env.base:
        return _failing(profile, facts, _("The Python environment adopts no other Python."), (looked, version))
    seen = (
        looked,
        version,
        _("it adopts {python}").format(python=env.base),
        _("torch is imported from {folder}").format(folder=env.torch.folder)
        if env.torch
        else _("torch is not installed"),
    )
    unsupported = _anew.unsupported(profile, facts)
    if unsupported:
        return _failing(profile, facts, unsupported, seen)
    if env.torch is None:
        return _failing(profile, facts, _("The adopted Python has no torch any more."), seen)
    if env.torch.folder.startswith(f"{env.prefix}/"):
        return _failing(profile, facts, _("The environment has a torch of its own."), seen)
    if not env.has_pip:
        return _failing(profile, facts, _("The Python environment has no pip."), seen)
    summary = _("Python {version} with torch {torch} of {python}")
    return ok(summary.format(version=env.version, torch=env.torch.version, python=env.base), *seen)


def _failing(profile: Profile, facts: Facts, summary: str, evidence: tuple[str, ...]) -> Finding:
    base = chosen(profile, facts)
    offered = tuple(_offer(item) for item in facts.machine.bases)
    evidence = (*evidence, *(offered or (_("found no other Python in this shell"),)))
    if base is None or base.torch is None:
        text = _(
            "Activate a Python ({supported}) that has torch, then run this again. "
            "`ucllm setup --profile cpu` needs none: it installs torch."
        )
        return fail(summary, evidence, Remedy(text.format(supported=", ".join(profile.pythons))))
    text = _("Make it with {python}, which has torch {torch} and stays as it is.")
    commands = tuple(line for action in actions(profile, facts) for line in action.commands)
    remedy = Remedy(text.format(python=base.path, torch=base.torch.version), commands, automatic=True)
    return fail(summary, evidence, remedy)


def _offer(base: Base) -> str:
    """What one of the shell's Pythons has, for people."""
    values = {"python": base.path, "version": base.version}
    if base.torch:
        found = _("found {python}: Python {version}, torch {torch} in {folder}")
        return found.format(**values, torch=base.torch.version, folder=base.torch.folder)
    if base.user_torch:
        return _("found {python}: Python {version}, torch only in your own site-packages").format(**values)
    return _("found {python}: Python {version}, no torch").format(**values)


def chosen(profile: Profile, facts: Facts) -> Base | None:
    """The first of the shell's Pythons that can be adopted; the active one is the first of all."""
    return next((item for item in facts.machine.bases if can_be_adopted(item, profile.pythons)), None)


def actions(profile: Profile, facts: Facts) -> list[Action]:
    """Move what is there aside, make the environment, and prove that both import the same torch from the same path."""
    base = chosen(profile, facts)
    if base is None or base.torch is None:
        return []
    env = Path(facts.env.path)
    lines = pth(base)
    file = env / "lib" / f"python{minor(base.version)}" / "site-packages" / ADOPT
    # A virtual environment shows what it shows itself: the packages of its own interpreter only if it was made so.
    shows = ("--system-site-packages",) if base.kind != "venv" or base.system_site else ()
    argv = (base.path, "-I", "-B", "-m", "venv", *shows, str(env))
    python = str(env / "bin" / "python")
    # An old setuptools, which Python before 3.12 brings with its pip, would hide the one that torch was installed with.
    drop = (python, "-I", "-B", "-m", "pip", "uninstall", "--yes", "--quiet", "setuptools")
    steps = [argv, *([drop] if numbers(base.version) < (3, 12) else [])]

    def make() -> None:
        for step in steps:
            _anew.venv(facts, step)
        file.write_text("\n".join((*lines, "")), encoding="ascii")
        _prove(base, python)

    text = _("Make the environment with {python}, which has torch {torch} and stays as it is")
    write = " ".join((shlex.join(("printf", "%s\\n", *lines)), ">", shlex.quote(str(file))))
    imports = shlex.join((python, "-I", "-c", "import torch; print(torch.__file__)"))
    commands = (*(shlex.join(step) for step in steps), write, imports)
    return _anew.actions(facts, text.format(python=base.path, torch=base.torch.version), commands, make)


def pth(base: Base) -> tuple[str, str]:
    """Our ``.pth`` file: who is adopted, then what Python runs when it starts. ASCII, for every locale.

    ``site.addsitedir`` honours the ``.pth`` files there, which a plain line with the folder would not.
    """
    folders = base.folders if base.kind == "venv" else ()
    steps = ["import site, sys", "sys.dont_write_bytecode = True", *(f"site.addsitedir({f!a})" for f in folders)]
    return f"# {json.dumps({'python': base.path})}", "; ".join(steps)


def _prove(base: Base, python: str) -> None:
    """Import torch with both. Raises :class:`UcllmError` if one cannot, or where it is not the same file."""
    there, here = _torch_of(base.path), _torch_of(python)
    if there != here:
        raise UcllmError(
            "env.other-torch",
            _("The new environment imports another torch than {python}.").format(python=base.path),
            f"{here} ≠ {there}",
        )


def _torch_of(python: str) -> str:
    argv = (python, "-I", "-B", "-c", _IMPORT)
    what = _("{python} cannot import torch.").format(python=python)
    hint = _("See the whole error: `{command}`").format(command=shlex.join((python, "-I", "-c", "import torch")))
    try:
        done = host.capture(argv, timeout_s=IMPORT_TIMEOUT_S)
    except OSError as error:  # also TimeoutError
        raise UcllmError("env.torch-not-imported", what, str(error), hint) from error
    files = said(done.stdout)
    if not files:
        raise UcllmError("env.torch-not-imported", what, done.complaint, hint)
    return str(files[-1])
