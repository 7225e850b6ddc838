"""Which numbers a training computes in."""

from __future__ import annotations

import os

from pipeline.i18n import _


def choose(asked: str) -> tuple[str, str]:
    """``fp32``, ``bf16`` or ``fp16`` for the setting ``asked``, and the reason in one line (empty: it was asked for).

    ``auto`` is bf16 on a GPU whose hardware computes in it (NVIDIA: Ampere and newer), else fp32: other devices only
    emulate it, slower than fp32.
    """
    if asked != "auto":
        return asked, ""
    import torch

    if not torch.cuda.is_available():
        return "fp32", _("Computing in fp32: there is no GPU.")
    name = torch.cuda.get_device_name(0)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", _("Computing in bf16: {device} has it in hardware.").format(device=name)
    return "fp32", _("Computing in fp32: {device} has no bf16 in hardware.").format(device=name)


def use_one_gpu() -> None:
    """Let this process see one GPU only, the first. Must come before torch looks for them.

    Given several, the Trainer of a single process splits every batch among them with ``DataParallel``, which is slower
    than one GPU and changes the batch size.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
