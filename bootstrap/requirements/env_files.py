"""``env.files``: installed files are those that were installed, by the hashes in RECORD (tier deep)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Pin, Profile, normalize
from bootstrap.requirements import DEEP, Action, Doing, Requirement
from bootstrap.requirements.env_packages import pip, pip_environment, shorten
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Files without a recorded hash, and byte code, are passed over."""
    deep = facts.deep
    looked = _("compared {count} files in site-packages of {path} with the hashes in RECORD").format(
        count=deep.checked or 0, path=facts.env.path
    )
    wrong = _wrong(facts)
    if wrong:
        parts = ((_("changed: {names}"), deep.changed), (_("missing: {names}"), deep.missing))
        seen = [
            text.format(names=f"{name}: {shorten([*files[name]])}") for text, files in parts for name in sorted(files)
        ]
        summary = _("Files of {names} are not as they were installed.").format(names=shorten(wrong))
        return fail(summary, (looked, *seen, *deep.unread), _remedy(profile, facts, wrong))
    if deep.checked is None or deep.unread:
        return unknown(_("Not all installed files could be compared."), (looked, *deep.unread))
    return ok(_("{count} files as they were installed").format(count=deep.checked), looked)


def _wrong(facts: Facts) -> list[str]:
    return sorted({*facts.deep.changed, *facts.deep.missing})


def _pins(profile: Profile, facts: Facts) -> dict[str, Pin]:
    """The pins that can be installed again from their lock: not torch's, whose wheel may come from several places."""
    if profile.env_kind != "venv":  # conda's own is conda's to repair, an adopted one is somebody else's
        return {}
    pins = profile.pins_for(facts.env.minor)
    torch = profile.torch.lock if profile.torch else ""
    return {pin.name: pin for pin in pins if pin.name in _wrong(facts) and pin.lock != torch}


def _remedy(profile: Profile, facts: Facts, wrong: list[str]) -> Remedy:
    ours = _pins(profile, facts)
    again = (facts.env.python, "-I", "-m", "pip", "install", "--force-reinstall", "--no-deps")
    wanted = [f"{name}=={facts.env.dists[name].version}" if name in facts.env.dists else name for name in wrong]
    text = _("Install these packages again: {names}.").format(names=", ".join(wanted))
    return Remedy(text, (shlex.join((*again, *wanted)),), automatic=set(wrong) <= set(ours), needs=("network",))


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Keep the changed files, then let pip install exactly these pins again, with the lock's hashes."""
    pins = _pins(profile, facts)
    if not pins or set(pins) != set(_wrong(facts)):
        return []
    names = ", ".join(sorted(pins))
    changed = sorted({Path(path) for name in pins for path in facts.deep.changed.get(name, ())})
    lock = workspace.state / "cache" / "reinstall.lock"
    argv = pip(workspace.python, lock, "--force-reinstall")

    def aside(doing: Doing) -> None:
        for path in changed:
            doing.move_aside(path)

    def install(_doing: Doing) -> None:
        text = "".join(block(profile.folder / pin.lock, pin.name) for pin in pins.values())
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(text, encoding="utf-8")
        host.run_logged(argv, log=workspace.state / "logs" / "env.files.txt", env=pip_environment(workspace))

    kept = [Action(_("Set the changed files of {names} aside").format(names=names), (), aside)] if changed else []
    return [*kept, Action(_("Install {names} again from the locks").format(names=names), (shlex.join(argv),), install)]


def block(lock: Path, name: str) -> str:
    """The lines of one pin in a lock, with its hashes."""
    found, inside = "", False
    for line in lock.read_text(encoding="utf-8").splitlines(keepends=True):
        if line[:1].strip() and not line.startswith("#"):
            inside = "==" in line and normalize(line.split("==")[0].split("[")[0].strip()) == name
        if inside and not line.lstrip().startswith("#"):
            found += line
    return found


REQUIREMENT = Requirement(
    "env.files",
    N_("Installed files"),
    N_("A file that was edited, or that a full disk or a crash damaged, fails in ways that nobody can explain."),
    "0-3",
    check,
    plan,
    needs=("env.python", "env.packages"),
    reads=("deep", "env"),
    tier=DEEP,
)
