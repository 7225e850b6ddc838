"""``source.apex``: apex is cloned, whole, and at the profile's commit (Step 0-5)."""

from __future__ import annotations

from bootstrap.requirements import _checkout
from pipeline.i18n import N_

REQUIREMENT = _checkout.requirement("source.apex", "apex", N_("apex checkout"), "0-5")
