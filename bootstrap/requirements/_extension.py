"""What the checks of compiled packages (``ops.…``) share: the suffix of this Python, the ABI of this torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, unknown
from bootstrap.versions import release
from pipeline.i18n import _


def installed(
    name: str, version: str, facts: Facts, evidence: list[str], remedy: Remedy, absent: str
) -> Finding | None:
    """What is wrong with a distribution that must be there in this release; ``None`` if nothing.

    ``absent`` is the summary if it is not there. What was seen is added to ``evidence``.
    """
    dist = facts.env.dists.get(name)
    evidence += [
        _("looked for {wanted} in site-packages of {path}").format(wanted=f"{name}=={version}", path=facts.env.path),
        _("found: {name} {version}").format(name=name, version=dist.version) if dist else _("found: none"),
    ]
    if dist is None:
        return fail(absent, evidence, remedy)
    if not dist.whole:
        return fail(_("{name} is only half installed.").format(name=name), evidence, remedy)
    if release(dist.version) != version:
        summary = _("{name} is {version}, not {wanted}.")
        return fail(summary.format(name=name, version=dist.version, wanted=version), evidence, remedy)
    return None


def look(modules: Sequence[str], facts: Facts, evidence: list[str], remedy: Remedy) -> Finding | None:
    """What is wrong with these compiled modules; ``None`` if nothing. What was seen is added to ``evidence``."""
    suffix = facts.env.extension_suffix
    if not suffix:
        return unknown(_("This Python did not say how its compiled modules are named."), evidence)
    evidence.append(
        _("looked for {names} with {suffix} in site-packages of {path}").format(
            names=", ".join(modules), suffix=suffix, path=facts.env.path
        )
    )
    there = {name: facts.env.extensions.get(name, ()) for name in modules}
    if not any(there.values()):
        evidence.append(_("found: none of them"))
        return fail(_("It was installed as Python only: nothing of it is compiled."), evidence, remedy)
    absent = [name for name, files in there.items() if not files]
    if absent:
        evidence.append(_("found all but {names}").format(names=", ".join(absent)))
        return fail(_("Not compiled: {names}.").format(names=", ".join(absent)), evidence, remedy)
    foreign = [name for name, files in there.items() if not any(path.endswith(suffix) for path in files)]
    if foreign:
        evidence += [path for name in foreign for path in there[name]]
        return fail(_("Built for another Python: {names}.").format(names=", ".join(foreign)), evidence, remedy)
    evidence.append(_("found all of them"))
    return abi((path for files in there.values() for path in files if path.endswith(suffix)), facts, evidence, remedy)


def abi(paths: Iterable[str], facts: Facts, evidence: list[str], remedy: Remedy) -> Finding | None:
    """What is wrong with the C++ ABI of these libraries, where it is known; ``None`` if nothing."""
    torch = facts.env.torch
    read = {path: facts.binaries.files[path] for path in paths if path in facts.binaries.files}
    names = {True: "cxx11", False: "old"}
    wanted = names[torch.cxx11_abi] if torch and torch.cxx11_abi is not None else ""
    other = [path for path, binary in read.items() if wanted and binary.abi and binary.abi != wanted]
    if other:
        evidence += [
            _("{path}: ABI {abi}; torch: ABI {torch}").format(path=path, abi=read[path].abi, torch=wanted)
            for path in other
        ]
        what = ", ".join(PurePosixPath(path).name for path in other)
        return fail(_("Built with another C++ ABI than torch: {names}.").format(names=what), evidence, remedy)
    unread = [binary.error for binary in read.values() if binary.error]
    if unread:
        return unknown(_("A compiled file could not be read."), [*evidence, *unread], remedy)
    if wanted and any(binary.abi for binary in read.values()):
        evidence.append(_("C++ ABI: {abi}, as torch's").format(abi=wanted))
    return None
