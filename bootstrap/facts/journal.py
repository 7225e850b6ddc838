"""What setup noted in the workspace's journal: from what each requirement was last made."""

from __future__ import annotations

from bootstrap.facts import JournalFacts
from bootstrap.facts.collect import Request
from bootstrap.journal import Journal
from pipeline.errors import UcllmError


def collect(request: Request) -> JournalFacts:
    """The last ``made`` entry of each requirement. A journal that cannot be read says nothing: fixes will name it."""
    found: dict[str, dict[str, str]] = {}
    try:
        entries = Journal(request.workspace).read()
    except UcllmError:
        return JournalFacts()
    for entry in entries:
        inputs = entry.get("inputs")
        if entry.get("status") == "made" and isinstance(inputs, dict):
            found[str(entry.get("requirement"))] = {str(key): str(value) for key, value in inputs.items()}
    return JournalFacts(found)
