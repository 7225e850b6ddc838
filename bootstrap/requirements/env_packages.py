"""``env.packages``: every locked package is installed, whole, in exactly the locked version (Step 0-3)."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bootstrap import host, mirror
from bootstrap.facts import Facts
from bootstrap.facts.probe import is_whole
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile, TorchSource, normalize
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.versions import release
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _

#: How many names a sentence lists before it says how many more there are.
SHOWN = 6


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the installed distributions with the locks. torch may carry a local version, ``2.13.0+cpu``."""
    if profile.ranges:
        from bootstrap.requirements import _ranges  # which builds on this module

        return _ranges.check(profile, facts)
    missing, different, broken = compare(profile, facts)
    python = facts.env.minor
    locks = sorted({pin.lock for pin in profile.pins_for(python)})
    looked = _("compared {count} installed packages with {locks}").format(
        count=len(facts.env.dists), locks=", ".join(f"{profile.name}/{name}" for name in locks)
    )
    parts = [
        (_("missing: {names}"), missing),
        (_("another version: {names}"), different),
        (_("half installed: {names}"), broken),
    ]
    wrong = [text.format(names=shorten(names)) for text, names in parts if names]
    if not wrong:
        count = len(profile.pins_for(python))
        return ok(_("{count} packages as locked").format(count=count), looked)
    total = len(missing) + len(different) + len(broken)
    summary = _("{count} packages are not as locked.").format(count=total)
    remedy = Remedy(
        _("Install them from the locks."), tuple(_commands(profile, Path(facts.env.python))), automatic=True
    )
    return fail(summary, (looked, *wrong), remedy)


def compare(profile: Profile, facts: Facts) -> tuple[list[str], list[str], list[str]]:
    """What is missing, what has another version, what is only half there, as texts for people."""
    missing: list[str] = []
    different: list[str] = []
    broken: list[str] = []
    for pin in profile.pins_for(facts.env.minor):
        dist = facts.env.dists.get(pin.name)
        if dist is None:
            missing.append(f"{pin.name} {pin.version}")
        elif not dist.whole:
            broken.append(pin.name)
        elif release(dist.version) != release(pin.version):
            different.append(f"{pin.name} {dist.version} ≠ {pin.version}")
    return missing, different, broken


def inputs(profile: Profile, _facts: Facts) -> dict[str, str]:
    """What the packages were, or would be, installed from."""
    return {name: profile.digests[name] for name in dict.fromkeys(pin.lock for pin in profile.pins)}


def shorten(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    text = ", ".join(names[:SHOWN])
    return _("{names} and {more} more").format(names=text, more=more) if more > 0 else text


def pip(python: Path, lock: Path, *more: str) -> tuple[str, ...]:
    """pip, told to install exactly the lock: every hash checked, wheels only, nothing resolved."""
    exact = ("--require-hashes", "--no-deps", "--only-binary", ":all:")
    # -I: a PYTHONPATH of the user's must not make pip believe that something is installed already.
    return (str(python), "-I", "-m", "pip", "install", *exact, *host.PIP_QUIET, *more, "-r", str(lock))


def pip_environment(workspace: Workspace, name: str = "tmp") -> dict[str, str]:
    """Variables for pip: a lock is exact, so a site's constraints must not speak; nothing goes to the user's home.

    ``name`` is of its temporary folder: only one pip works in each at a time.
    """
    scratch = workspace.state / "cache" / name
    shutil.rmtree(scratch, ignore_errors=True)  # gigabytes of a pip that was killed
    scratch.mkdir(parents=True, exist_ok=True)
    cache = os.environ.get("PIP_CACHE_DIR") or str(workspace.state / "cache" / "pip")
    # An empty PIP_CONSTRAINT does not override a configuration file; an empty file does.
    settings = {"PIP_CONSTRAINT": os.devnull, "PIP_USER": "0", "PIP_CACHE_DIR": cache, "TMPDIR": str(scratch)}
    return {**settings, **mirror.pip_variables(workspace)}


def _commands(profile: Profile, python: Path) -> list[str]:
    locks = list(dict.fromkeys(pin.lock for pin in profile.pins))
    return [shlex.join(pip(python, profile.folder / name)) for name in locks]


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Set half-installed packages aside, then let pip install each lock, hashes required."""
    if profile.ranges:
        from bootstrap.requirements import _ranges  # as above

        return _ranges.actions(profile, facts, workspace)
    python = workspace.python
    log = workspace.state / "logs" / "env.packages.txt"
    actions = []
    missing, different, broken = compare(profile, facts)
    if broken:
        actions.append(aside(workspace, broken))
    wrong = {text.split()[0] for text in (*missing, *different, *broken)}
    # With the right torch there, its lock would only add what the other kind of wheel needs.
    of_torch = {pin.name for pin in profile.pins if profile.torch and pin.lock == profile.torch.lock}
    if profile.torch is not None and of_torch & wrong:
        torch = profile.torch

        def install_torch(doing: Doing) -> None:
            _install_torch(profile, torch, workspace, log, doing.say)

        text = _("Install torch from {lock}").format(lock=torch.lock)
        actions.append(Action(text, (shlex.join(pip(python, profile.folder / torch.lock)),), install_torch))
    for name in dict.fromkeys(pin.lock for pin in profile.pins):
        if profile.torch is not None and name == profile.torch.lock:
            continue
        argv = pip(python, profile.folder / name)

        def install(doing: Doing, argv: tuple[str, ...] = argv) -> None:
            # What a killed pip had renamed to `~name` before it installed another version.
            for leftover in workspace.env.glob("lib/python*/site-packages/~*"):
                doing.move_aside(leftover)
            _run(argv, workspace, log, pip_environment(workspace))

        megabytes = profile.sizes.get(name)
        size = _(" (about {megabytes} MB)").format(megabytes=round(megabytes)) if megabytes else ""
        actions.append(Action(_("Install {lock}{size}").format(lock=name, size=size), (shlex.join(argv),), install))
    return actions


def aside(workspace: Workspace, broken: list[str]) -> Action:
    """Move the metadata of half-installed packages away, without which pip installs them again."""

    def act(doing: Doing) -> None:
        for folder in workspace.env.glob("lib/python*/site-packages/*.dist-info"):
            if normalize(folder.name.split("-")[0]) in broken and not is_whole(str(folder)):
                doing.move_aside(folder)

    return Action(_("Set half-installed packages aside: {names}").format(names=shorten(broken)), (), act)


def _install_torch(
    profile: Profile, torch: TorchSource, workspace: Workspace, log: Path, say: Callable[[str], None]
) -> None:
    """The wheels from where pip is configured to look, else from PyTorch's own list, else the default wheels, if any.

    Only «there is no such wheel here» leads to the next source; a wheel with another hash is an error at once. With a
    mirror nothing is looked for elsewhere.
    """
    python, env = workspace.python, pip_environment(workspace)
    lock = profile.folder / torch.lock
    places = ((_("the configured package index"), ()), (_("PyTorch's own list of wheels"), torch.pip_options))
    tried = ((_("the mirror"), ()),) if workspace.mirror else places
    for number, (where, options) in enumerate(tried, 1):
        before = log.stat().st_size if log.exists() else 0
        try:
            _run(pip(python, lock, *options), workspace, log, env)
        except UcllmError:
            with log.open(encoding="utf-8", errors="replace") as stream:
                stream.seek(before)
                said = stream.read()
            last = number == len(tried) and not torch.default_lock
            if last or "No matching distribution found" not in said:
                raise
        else:
            say(_("torch: from {where}").format(where=where))
            return
    say(
        _(
            "torch: no CPU wheel can be had here, so the index's default wheel is taken: "
            "{download:.1f} GB to download, {disk:.1f} GB on disk"
        ).format(download=torch.default_download_gb, disk=torch.default_disk_gb)
    )
    _run(pip(python, profile.folder / torch.default_lock), workspace, log, env)


def _run(argv: tuple[str, ...], workspace: Workspace, log: Path, env: Mapping[str, str]) -> None:
    """Run pip. What it says of a mirror needs our words too."""
    try:
        host.run_logged(argv, log=log, env=env)
    except UcllmError as error:
        if not workspace.mirror:
            raise
        problem = error.problems[0]
        raise UcllmError(
            problem.code, problem.what, problem.why, f"{problem.hint} {mirror.advice(workspace)}"
        ) from error


REQUIREMENT = Requirement(
    "env.packages",
    N_("Python packages"),
    N_("Other versions than the tested ones fail late, in the middle of a training or a conversion."),
    "0-3",
    check,
    plan,
    needs=("env.python",),
    inputs=inputs,
    reads=("env", "journal"),
)
