"""What is to be mirrored, and a mirror of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap import mirror
from tests.bootstrap.mirrored import Mirrored
from tests.bootstrap.server import Faulty, serving


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Mirrored]:
    """The profile and where everything comes from; nothing is mirrored yet."""
    with serving(Faulty()) as server:
        yield Mirrored(tmp_path, server)


@pytest.fixture
def made(origin: Mirrored) -> Mirrored:
    """The same, mirrored."""
    outcome = origin.create()
    assert outcome.code == 0, outcome.out + outcome.err
    mirror.index.cache_clear()
    return origin
