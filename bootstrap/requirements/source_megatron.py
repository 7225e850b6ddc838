"""``source.megatron``: Megatron-DeepSpeed is cloned, whole, and at the profile's commit (Step 0-4)."""

from __future__ import annotations

from bootstrap.requirements import _checkout
from pipeline.i18n import N_

REQUIREMENT = _checkout.requirement("source.megatron", "megatron", N_("Megatron-DeepSpeed checkout"), "0-4")
