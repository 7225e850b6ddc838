"""LoRA by peft: small matrices beside the frozen weights are trained, and added to them at the end."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from pipeline.engines.wandb_report import missing_package
from pipeline.i18n import _

#: The defaults of llm-jp-sft (``train.py``: ``peft_lora_alpha``, ``peft_lora_dropout``).
ALPHA, DROPOUT = 32, 0.05


def configuration(rank: int) -> Any:
    """peft's ``LoraConfig`` for adapters of ``rank`` beside every linear layer but the output's; ``None`` for rank 0.

    For a GPT-2 those are the layers that llm-jp-sft takes. Raises :class:`pipeline.errors.UcllmError` without peft.
    """
    if not rank:
        return None
    if importlib.util.find_spec("peft") is None:
        hint = _("Or train all weights: `--set finetune.lora_rank=0`.")
        raise missing_package("finetune.no-peft", f"finetune.lora_rank={rank}", "peft", hint)
    return importlib.import_module("peft").LoraConfig(
        r=rank, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
    )
