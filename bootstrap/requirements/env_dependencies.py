"""``env.dependencies``: the installed packages have what they require of each other (Step 0-3). What pip check asks."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile, normalize
from bootstrap.requirements import Requirement
from bootstrap.versions import release
from pipeline.i18n import N_, _

#: What torch's wheels on the package index require for CUDA, and conda or a CPU build brings otherwise or does without.
_FOR_CUDA = ("nvidia-", "triton", "pytorch-triton")


def check(profile: Profile, facts: Facts) -> Finding:
    """Each requirement, without those of extras, is there in a version that fits."""
    env = facts.env
    looked = _("compared the requirements of {count} installed packages").format(count=len(env.dists))
    if not env.dists:
        return unknown(_("The installed packages could not be read."), (looked,))
    pins = {pin.name: pin.version for pin in profile.pins_for(env.minor)}
    found = _conflicts(facts, pins)
    wrong = [text for name, text in found if name in pins]
    others = [text for name, text in found if name not in pins]
    if not wrong and not others:
        return ok(_("every package has what it requires"), looked)
    pip = (env.python, "-I", "-m", "pip")
    if wrong:
        remedy = Remedy(
            _("Bring the packages that are required back to what fits, or remove what was added since."),
            (shlex.join((*pip, "check")),),
        )
        return fail(_("{count} requirements are not met.").format(count=len(wrong)), (looked, *wrong, *others), remedy)
    names = sorted({name for name, _text in found if name not in env.adopted})  # pip cannot remove those from here
    remedy = Remedy(
        _("Install what they require if you use them, else remove them."),
        (shlex.join((*pip, "uninstall", *names)),) if names else (),
    )
    summary = _("{count} requirements of packages you added are not met.").format(count=len(others))
    return warn(summary, (looked, *others), remedy)


def _conflicts(facts: Facts, pins: dict[str, str]) -> list[tuple[str, str]]:
    """Who requires something that is not so, with the sentence that says it."""
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Wanted
    from packaging.version import InvalidVersion, Version

    dists, marker, adopted = facts.env.dists, _environment(facts), set(facts.env.adopted)
    locked = {
        name for name, version in pins.items() if name in dists and release(dists[name].version) == release(version)
    }
    found = []
    for name, dist in sorted(dists.items()):
        for text in dist.requires if dist.whole else ():
            try:
                wanted = Wanted(text)
                if wanted.marker and not wanted.marker.evaluate(marker):
                    continue
                other = normalize(wanted.name)
                # What is wrong in an adopted Python by itself is not ours to judge.
                if name in adopted and (other in adopted or other not in dists):
                    continue
                if other not in dists:
                    if not (name == "torch" and other.startswith(_FOR_CUDA) and _without_wheels(facts)):
                        found.append((name, _("{name} requires {text}: missing").format(name=name, text=text)))
                    continue
                fits = wanted.specifier.contains(Version(dists[other].version), prereleases=True)
            except (InvalidRequirement, InvalidVersion):
                continue  # what no tool can read says nothing
            # Two locked packages in their locked versions are as they were tested together.
            if not fits and not {name, other} <= locked:
                has = _("{name} requires {text}: {version} is there")
                found.append((name, has.format(name=name, text=text, version=dists[other].version)))
    return found


def _without_wheels(facts: Facts) -> bool:
    """Whether this torch gets CUDA otherwise than from wheels, or not at all."""
    return facts.env.kind == "conda" or facts.env.torch is None or not facts.env.torch.cuda


def _environment(facts: Facts) -> dict[str, str]:
    """The environment's values for markers: its Python's, not this one's."""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "implementation_version": facts.env.version,
        "os_name": "posix",
        "platform_machine": facts.machine.machine,
        "platform_python_implementation": "CPython",
        "platform_system": facts.machine.system or "Linux",
        "python_full_version": facts.env.version,
        "python_version": facts.env.minor,
        "sys_platform": "darwin" if facts.machine.system == "Darwin" else "linux",
    }


REQUIREMENT = Requirement(
    "env.dependencies",
    N_("Requirements of the packages"),
    N_("A package whose requirement is missing or of another version fails when that part is first used."),
    "0-3",
    check,
    needs=("env.packages",),
    reads=("env", "machine"),
)
