"""What only ``--deep`` reads: whether modules import, whether files are as installed, what GPUs libraries are for."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bootstrap import host
from bootstrap.facts import BuildsFacts, DeepFacts, EnvFacts, device_code
from bootstrap.facts.binaries import FLASH_ATTENTION
from bootstrap.facts.collect import Request
from bootstrap.profiles import Profile
from pipeline.i18n import _

PROBE = Path(__file__).parent / "deep_probe.py"
#: Below the section's own limit, so that what the other child found is not lost with the one that hangs.
TIMEOUT_S = 840.0


def collect(request: Request) -> DeepFacts:
    """Two children of the environment's Python, one that imports and one that hashes; libraries are read here."""
    env: EnvFacts = request.section("env")
    if env.state != "ready":
        return DeepFacts()
    with ThreadPoolExecutor(2) as pool:
        hashing = pool.submit(compare_files, env.python)
        found, seconds = import_all(env.python, modules(request.profile, env))
        began = time.perf_counter()
        code = {
            path: device_code.read(Path(path)) for path in libraries(request.profile, env, request.section("builds"))
        }
        seconds["device_code"] = round(time.perf_counter() - began, 3)
        files = hashing.result()
    seconds["files"] = files.pop("seconds", 0.0)
    return DeepFacts(
        imports=found,
        device_code={path: archs for path, archs in code.items() if archs is not None},
        seconds=seconds,
        **files,
    )


def modules(profile: Profile, env: EnvFacts) -> list[str]:
    """What the profile's training imports, torch first: the others are loaded with its libraries."""
    wanted = {
        "torch": env.torch is not None,
        "transformers": "transformers" in profile.windows,
        "deepspeed": profile.deepspeed is not None,
        "apex": profile.apex is not None,
        "flash_attn": profile.flash_attention is not None,
    }
    return [name for name, needed in wanted.items() if needed]


def libraries(profile: Profile, env: EnvFacts, builds: BuildsFacts) -> list[str]:
    """The compiled files that the profile's training loads with this Python."""
    names = [*(profile.apex.modules if profile.apex else ()), *((FLASH_ATTENTION,) if profile.flash_attention else ())]
    found = [path for name in names for path in env.extensions.get(name, ())]
    if profile.deepspeed and profile.deepspeed.ops and env.deepspeed:
        found += env.deepspeed.libraries
    mine = [path for path in found if path.endswith(env.extension_suffix)]
    return [*mine, *(builds.fused_kernels.built if builds.fused_kernels else ())]


def import_all(
    python: str, names: Sequence[str], *, timeout_s: float = TIMEOUT_S
) -> tuple[dict[str, str], dict[str, float]]:
    """Each module's error (empty: it imports), and its seconds. Modules after one that kills the child are left out."""
    if not names:
        return {}, {}
    errors: dict[str, str] = {}
    seconds: dict[str, float] = {}
    try:
        done = host.capture((python, "-I", "-B", str(PROBE), "imports", *names), timeout_s=timeout_s)
    except (OSError, TimeoutError) as error:
        return {names[0]: str(error)}, {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if "importing" in said:
            # Overwritten by the next line, unless the child does not live to write it.
            errors[said["importing"]] = _("the process ended while importing it (exit code {code})").format(
                code=done.code
            )
        else:
            errors[said["imported"]] = said["error"]
            seconds[said["imported"]] = round(said["seconds"], 3)
    if not errors:
        errors[names[0]] = done.complaint
    return errors, seconds


def compare_files(python: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The fields of :class:`DeepFacts` about files; without ``checked`` if the child did not answer."""
    began = time.perf_counter()
    try:
        done = host.capture((python, "-I", "-B", str(PROBE), "files"), timeout_s=timeout_s)
        said = json.loads(done.stdout)
        wrong = {
            kind: {name: tuple(paths) for name, paths in sorted(said[kind].items())} for kind in ("changed", "missing")
        }
        answer: dict[str, Any] = {**wrong, "unread": tuple(said["unread"]), "checked": int(said["checked"])}
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        answer = {"unread": (str(error),)}
    answer["seconds"] = round(time.perf_counter() - began, 3)
    return answer
