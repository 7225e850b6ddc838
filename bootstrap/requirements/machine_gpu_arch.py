"""``machine.gpu-arch``: torch, nvcc and flash-attn have, or can make, code for this GPU."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._gpu import devices, runs
from bootstrap.versions import numbers
from pipeline.i18n import N_, _

#: bfloat16 in tensor cores, NVIDIA's Ampere white paper.
BF16 = (8, 0)


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare each GPU's compute capability with what the profile's parts have code for."""
    gpus = devices(profile, facts)
    if not gpus:
        return skipped(_("There is no GPU to check for."), _("looked at the driver's GPUs and the profile's"))
    seen = [
        _("{gpu}: compute capability {capability}").format(gpu=gpu.name, capability=gpu.capability or "?")
        for gpu in gpus
    ]
    parts = {
        "torch": profile.torch_build.architectures if profile.torch_build else (),
        "nvcc": profile.cuda.architectures if profile.cuda else (),
    }
    for name, known in parts.items():
        if known:
            seen.append(_("{part} has code for: {architectures}").format(part=name, architectures=", ".join(known)))
    if any(not gpu.capability for gpu in gpus):
        return unknown(_("The GPU's compute capability could not be read."), seen)
    for gpu in gpus:
        mine = numbers(gpu.capability)[:2]
        wrong = [name for name, known in parts.items() if known and not any(runs(mine, f"sm_{arch}") for arch in known)]
        least = profile.flash_attention.min_capability if profile.flash_attention else ""
        if least and mine < numbers(least):
            wrong.append("flash-attn")
            seen.append(_("flash-attn needs {capability} or newer").format(capability=least))
        if wrong:
            summary = _("{gpu} ({capability}) is not supported by {parts}.")
            text = _("Use a machine whose GPU the profile supports, or a profile for this GPU (`--profile host`).")
            named = summary.format(gpu=gpu.name, capability=gpu.capability, parts=", ".join(wrong))
            return fail(named, seen, Remedy(text))
    old = [gpu for gpu in gpus if numbers(gpu.capability)[:2] < BF16]
    if old:
        text = _("Train with fp16 instead: `--set pretrain.precision=fp16`.")
        return warn(_("{gpu} has no bfloat16.").format(gpu=old[0].name), seen, Remedy(text))
    return ok(", ".join(f"{gpu.name} ({gpu.capability})" for gpu in gpus), *seen)


REQUIREMENT = Requirement(
    "machine.gpu-arch",
    N_("GPU architecture"),
    N_("Code for another architecture fails at the first kernel: «no kernel image is available for execution»."),
    "0-0",
    check,
    needs=("machine.gpu",),
    reads=("gpu", "machine"),
)
