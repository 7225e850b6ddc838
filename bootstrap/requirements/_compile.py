"""What the wheels that are compiled here share: for which GPUs, with how many compilers, made from what."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from bootstrap import activation, wheels
from bootstrap.facts import Facts
from bootstrap.facts.probe import is_whole
from bootstrap.findings import Remedy
from bootstrap.profiles import Profile, normalize
from bootstrap.requirements import Action, Doing
from bootstrap.requirements.env_packages import pip_environment
from bootstrap.requirements.machine_disk import GB
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: The part of the available memory that compilers may fill; the rest is for everything else.
MEMORY_SHARE = 0.9
#: What the user's shell and the environment's hooks tell a build: which compilers, and with which flags. It decides
#: what comes out. From setuptools' ``customize_compiler``, torch's ``cpp_extension`` and nvcc's manual.
CHOICES = (
    *("CC", "CXX", "NVCC_CCBIN", "CUDAHOSTCXX", "LDSHARED", "LDCXXSHARED"),
    *("CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS"),
)
#: What must hold before a compiler is started: a build that fails after an hour fails late.
GUARDS = (
    "machine.compiler",
    "machine.memory",
    "machine.disk",
    "machine.disk-tmp",
    "machine.python-headers",
    "env.nvcc",
    "env.cuda-match",
    "env.packages",
)


def capabilities(profile: Profile, facts: Facts) -> tuple[str, ...]:
    """The GPUs to compile for: those that are here, else the profile's declared one."""
    if profile.cuda is None:
        return ()
    here = {gpu.capability for gpu in facts.gpu.devices if gpu.capability}
    declared = {profile.gpu.capability} if profile.gpu else set()
    return tuple(sorted(here or declared))


def fit(profile: Profile, facts: Facts) -> int | None:
    """How many compilers the available memory holds; ``None`` if it could not be read."""
    available = facts.machine.memory_available
    if available is None:
        return None
    return max(1, int(available * MEMORY_SHARE / (profile.machine.memory_gb_per_job * GB)))


def to_build(profile: Profile, facts: Facts) -> list[str]:
    """What the profile compiles and is not installed yet."""
    wanted = (
        ("deepspeed", profile.deepspeed is not None and bool(profile.deepspeed.ops)),
        ("apex", profile.apex is not None),
        ("flash-attn", profile.flash_attention is not None),
    )
    return [name for name, needed in wanted if needed and name not in facts.env.dists]


def beside(profile: Profile, facts: Facts) -> int:
    """How many builds go on at a time: all that are to be made, or one where memory holds no compiler of each."""
    builds, room = max(1, len(to_build(profile, facts))), fit(profile, facts)
    return builds if room is None or room >= builds else 1


def jobs(profile: Profile, facts: Facts) -> tuple[int, str]:
    """How many compilers one build may start, and why so many: all builds beside each other share them."""
    given = facts.machine.variables.get("MAX_JOBS", "")
    cores, room = facts.machine.cores or 1, fit(profile, facts)
    if given.isdigit() and int(given) > 0:
        total, why = int(given), f"MAX_JOBS={given}"
    elif room is not None and room < cores:
        total, why = room, _("memory for {jobs}, of {cores} cores").format(jobs=room, cores=cores)
    else:
        total, why = cores, _("one for each core")
    builds = beside(profile, facts)
    if builds > 1:
        why = _("{why}, shared by {builds} builds").format(why=why, builds=builds)
    return max(1, total // builds), why


def variables(profile: Profile, facts: Facts) -> dict[str, str]:
    """What a build is told: how many compilers, for which GPU. One architecture at a time needs one nvcc thread."""
    told = {"MAX_JOBS": str(jobs(profile, facts)[0])}
    found = capabilities(profile, facts)
    if found:
        told |= {"TORCH_CUDA_ARCH_LIST": ";".join(found), "NVCC_THREADS": "1"}
    return told


def made_from(profile: Profile, facts: Facts, source: str, flags: str = "") -> dict[str, str]:
    """What decides whether a compiled package still fits: its source, and what it was compiled against."""
    torch = facts.env.torch
    return {
        "source": source,
        "Python": facts.env.minor,
        "torch": torch.version if torch else "",
        "C++ ABI": {True: "cxx11", False: "old", None: ""}[torch.cxx11_abi if torch else None],
        "CUDA": torch.cuda if torch else "",
        "GPU": " ".join(capabilities(profile, facts)),
        "flags": flags,
    }


def compiled_by(facts: Facts) -> dict[str, str]:
    """What else decides what comes out: another machine's wheel must not be taken for this one's."""
    programs = facts.tools.programs
    found = {name: programs[name].version if name in programs else "" for name in ("gcc", "g++", "nvcc")}
    pip = facts.env.dists.get("pip")
    # DeepSpeed compiles with -march=native: op_builder/builder.py, cpu_arch. Old pips drop build options.
    return {
        **found,
        "pip": pip.version if pip else "",
        "machine": facts.machine.machine,
        "processor": facts.machine.cpu,
        "libc": facts.machine.libc,
    }


def _chosen(workspace: Workspace) -> dict[str, str]:
    """The choices that the build will be told of, those of the environment's hooks too: they have the last word.

    Without an environment yet, or with hooks that fail, the shell's. Asked when a build is planned, not at each check:
    hooks are run for it.
    """
    try:
        told: Mapping[str, str] = activation.variables(workspace)
    except UcllmError:
        told = os.environ
    return {name: told.get(name, "") for name in CHOICES}


def _unknown(build: Build, profile: Profile) -> list[str]:
    """What is not known and decides what comes out: without it the wheel would be kept under a name that says less."""
    needed = ("Python", "torch", "g++", *(("CUDA", "nvcc") if profile.cuda else ()))
    return [name for name in needed if not build.inputs.get(name, name)]


def plan(requirement_id: str, build: Build, profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Compile the wheel, unless it was compiled before, and install it. Either raises :class:`UcllmError`."""
    python, log = Path(facts.env.interpreter), workspace.state / "logs" / f"{requirement_id}.txt"
    if "g++" in build.inputs:
        build = dataclasses.replace(build, inputs={**build.inputs, **_chosen(workspace)})
    unknown = _unknown(build, profile)
    found = None if unknown else wheels.cached(build)

    def wheel_of(doing: Doing) -> Path:
        if unknown:
            what = _("{name} is not built: it could not be read for which {unknown}.")
            what = what.format(name=build.name, unknown=", ".join(unknown))
            hint = _("Run the same command again when the machine is less busy; `ucllm doctor` says what it can read.")
            raise UcllmError("build.unknown-inputs", what, hint=hint)
        # pip's settings too: a mirror, a cache of one's own.
        return wheels.build(build, workspace, log, doing, pip_environment(workspace, build.name))

    def compile_it(doing: Doing) -> None:
        wheel_of(doing)

    def install(doing: Doing) -> None:
        wheel = wheel_of(doing)
        for half in workspace.env.glob("lib/python*/site-packages/*.dist-info"):
            if normalize(half.name.split("-")[0]) == build.name and not is_whole(str(half)):
                doing.move_aside(half)  # of a pip that was killed; the next one could not remove it
        wheels.install(wheel, workspace, log, pip_environment(workspace))

    actions = []
    if found is None:
        details = "; ".join(_details(build, *jobs(profile, facts)))
        text = _("Build {name} ({details})") if details else _("Build {name}")
        text = text.format(name=build.name, details=details)
        several = beside(profile, facts) > 1 or "MAX_JOBS" not in build.variables
        actions.append(Action(text, (build.command(python, build.folders[0]),), compile_it, background=several))
    text = _("Install the built {name}") if found is None else _("Install {name}, built before, from the cache")
    command = shlex.join(wheels.install_argv(python, found or build.folders[0]))
    if found is None:  # the wheel's name is known once it is built
        command += "/*.whl"
    kept = str(found.parent) if found else ""
    actions.append(Action(text.format(name=build.name), (command,), install, kept=kept))
    return actions


def remedy(text: str, build: Build, facts: Facts) -> Remedy:
    """The same by hand, in one command."""
    needs = ("network",) if build.source else ()
    return Remedy(text, (build.by_hand(Path(facts.env.interpreter)),), automatic=True, needs=needs)


def _details(build: Build, count: int, why: str) -> list[str]:
    compiled = "MAX_JOBS" in build.variables
    details = [_("{count} compilers: {why}").format(count=count, why=why)] if compiled else []
    if build.inputs.get("GPU"):
        details.append(_("for compute capability {which}").format(which=build.inputs["GPU"]))
    seconds = wheels.last_seconds(build)
    if seconds is not None:
        details.append(_("took {seconds} s the last time").format(seconds=round(seconds)))
    return details


def sdist(profile: Profile, name: str) -> tuple[str, tuple[str, ...]]:
    """A source distribution of the profile: what identifies it, and what pip is given. Its lock has its name."""
    lock = profile.folder / f"{name}.lock"
    return profile.digests.get(lock.name, ""), ("--require-hashes", "-r", str(lock))


def flags(options: Mapping[str, str]) -> str:
    """Build flags as one text."""
    return " ".join(f"{name}={value}" for name, value in options.items())
