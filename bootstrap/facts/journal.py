"""What setup noted in the workspace's journal: from what each requirement was last made."""

from __future__ import annotations

from bootstrap.facts import JournalFacts
from bootstrap.facts.collect import Request
from bootstrap.journal import Journal


def collect(request: Request) -> JournalFacts:
    """The last ``made`` entry of each requirement."""
    found: dict[str, dict[str, str]] = {}
    for entry in Journal(request.workspace).read():
        inputs = entry.get("inputs")
        if entry.get("status") == "made" and isinstance(inputs, dict):
            found[str(entry.get("requirement"))] = {str(key): str(value) for key, value in inputs.items()}
    return JournalFacts(found)
