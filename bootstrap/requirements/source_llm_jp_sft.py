"""``source.llm-jp-sft``: llm-jp-sft is cloned, whole, and at the profile's commit (Step 0-7)."""

from __future__ import annotations

from bootstrap.requirements import _checkout
from pipeline.i18n import N_

REQUIREMENT = _checkout.requirement("source.llm-jp-sft", "llm-jp-sft", N_("llm-jp-sft checkout"), "0-7")
