"""What only ``--deep`` reads: whether modules import, whether files are as installed, what GPUs libraries are for."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bootstrap.facts import BuildsFacts, DeepFacts, EnvFacts, conda_files, device_code
from bootstrap.facts.answer import ask
from bootstrap.facts.binaries import FLASH_ATTENTION
from bootstrap.facts.collect import Request
from bootstrap.profiles import Profile
from pipeline.i18n import _

PROBE = Path(__file__).parent / "deep_probe.py"
#: Below the section's own limit, so that what the other child found is not lost with the one that hangs.
TIMEOUT_S = 840.0
#: What a child has, beside the seconds for its imports, to start and to end, in seconds.
GRACE_S = 20.0
#: Where libraries keep things, if it is not below the home folder.
PLACES = (
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE"),
    *("TORCH_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR"),
)


def collect(request: Request) -> DeepFacts:
    """Children of the environment's Python that import, and beside them one that hashes; libraries are read here."""
    env: EnvFacts = request.section("env")
    if env.state != "ready":
        return DeepFacts()
    with ThreadPoolExecutor(2) as pool:
        hashing = pool.submit(compare_files, env.python)
        of_conda = pool.submit(conda_files.compare, Path(env.path)) if request.profile.env_kind == "conda" else None
        found, seconds = import_all(env.python, modules(request.profile, env))
        began = time.perf_counter()
        code = {
            path: device_code.read(Path(path)) for path in libraries(request.profile, env, request.section("builds"))
        }
        seconds["device_code"] = round(time.perf_counter() - began, 3)
        files = hashing.result()
        if of_conda:
            files["conda_changed"], files["conda_checked"] = of_conda.result()
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
    """Each module's error (empty: it imports), and its seconds.

    All in one process, as in training; after a module that ends it or hangs, the rest in a new one. What there was no
    time for is left out.
    """
    errors: dict[str, str] = {}
    seconds: dict[str, float] = {}
    end = time.monotonic() + timeout_s
    while (left := [name for name in names if name not in errors]) and (rest := end - time.monotonic()) > 0:
        _import_some(python, left, rest, errors, seconds)
    return errors, seconds


def _import_some(
    python: str, names: Sequence[str], timeout_s: float, errors: dict[str, str], seconds: dict[str, float]
) -> None:
    """Import modules in one process until one ends it; at least the first of them is in ``errors`` afterwards."""
    importing, limit, printed = names[0], timeout_s, ""
    try:
        with tempfile.TemporaryDirectory(prefix="ucllm-", ignore_cleanup_errors=True) as home:
            # Libraries read settings from the user's home and write caches there; looking must leave nothing behind.
            places = {"HOME": home, **{name: f"{home}/{name}" for name in PLACES if name in os.environ}}
            file = Path(home) / "printed.txt"
            args = ("imports", str(timeout_s), str(file), *names)
            said, done = ask(python, PROBE, *args, timeout_s=timeout_s + GRACE_S, env=places)
            if file.exists():
                printed = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:  # also TimeoutError
        errors[names[0]] = str(error)
        return
    for value in said:
        if "importing" in value:
            importing, limit = value["importing"], value["limit"]
        else:
            errors[value["imported"]] = value["error"]
            seconds[value["imported"]] = round(value["seconds"], 3)
    if importing in errors:
        return
    if not said:
        errors[importing] = done.complaint
    elif done.code == -signal.SIGALRM:
        errors[importing] = _("the import did not end in {seconds} s").format(seconds=round(limit))
    else:
        text = _("the process ended while importing it (exit code {code})").format(code=done.code)
        errors[importing] = f"{text}: {printed.splitlines()[-1]}" if printed else text


def compare_files(python: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The fields of :class:`DeepFacts` about files; without ``checked`` if the child did not answer."""
    began = time.perf_counter()
    try:
        values, done = ask(python, PROBE, "files", timeout_s=timeout_s)
    except OSError as error:  # also TimeoutError
        answer: dict[str, Any] = {"unread": (str(error),)}
    else:
        answer = _compared(values[0]) if values else {"unread": (done.complaint,)}
    answer["seconds"] = round(time.perf_counter() - began, 3)
    return answer


def _compared(said: Any) -> dict[str, Any]:
    """What the child found, as fields."""
    changed, missing = (
        {name: tuple(paths) for name, paths in sorted(said[kind].items())} for kind in ("changed", "missing")
    )
    return {"changed": changed, "missing": missing, "unread": tuple(said["unread"]), "checked": said["checked"]}
