"""``ops.device-code``: compiled libraries have code for the GPU that is here or planned for (tier deep)."""

from __future__ import annotations

from pathlib import PurePosixPath

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import DEEP, Requirement
from bootstrap.requirements._gpu import devices, runs
from bootstrap.versions import numbers
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Libraries without any device code are not in the facts."""
    gpus = devices(profile, facts)
    if not gpus:
        return skipped(_("There is no GPU to check for."), _("looked at the driver's GPUs and the profile's"))
    if any(not gpu.capability for gpu in gpus):
        return unknown(_("The GPU's compute capability could not be read."), [gpu.name for gpu in gpus])
    code = facts.deep.device_code
    if not code:
        return skipped(_("no compiled library here has code for GPUs"), _("looked at the profile's compiled modules"))
    capabilities = sorted({numbers(gpu.capability)[:2] for gpu in gpus})
    wanted = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    seen = [_("looked for code for compute capability {capability}").format(capability=wanted)]
    seen += [f"{path}: {', '.join(archs) or '?'}" for path, archs in sorted(code.items())]
    lacking = [
        path
        for path, archs in sorted(code.items())
        if archs and not all(any(runs(mine, arch) for arch in archs) for mine in capabilities)
    ]
    if lacking:
        what = ", ".join(PurePosixPath(path).name for path in lacking)
        listed = ";".join(f"{major}.{minor}" for major, minor in capabilities)
        text = _("Build them again with `TORCH_CUDA_ARCH_LIST={listed}` set: `ucllm doctor --explain {id}`.")
        ids = {"deepspeed": "ops.deepspeed", "fused_kernels": "build.fused-kernels", "flash_attn": "ops.flash-attn"}
        owner = next((item for part, item in ids.items() if part in lacking[0]), "ops.apex")
        remedy = Remedy(text.format(listed=listed, id=owner), (f"export TORCH_CUDA_ARCH_LIST='{listed}'",))
        return fail(
            _("No code for this GPU ({capability}): {names}.").format(capability=wanted, names=what), seen, remedy
        )
    if any(not archs for archs in code.values()):
        return unknown(_("The GPU code of a compiled library could not be read."), seen)
    return ok(_("{count} libraries have code for {capability}").format(count=len(code), capability=wanted), *seen)


REQUIREMENT = Requirement(
    "ops.device-code",
    N_("GPU code of compiled libraries"),
    N_("Code for another GPU fails at the first kernel: «no kernel image is available for execution»."),
    "0-3",
    check,
    needs=("machine.gpu-arch", "env.torch"),
    reads=("builds", "deep", "env", "gpu", "machine"),
    tier=DEEP,
)
