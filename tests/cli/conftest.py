"""The command line on a workspace that setup has finished, shared with the tests of `bootstrap/`."""

from __future__ import annotations

from tests.bootstrap.conftest import empty, healthy, template

__all__ = ["empty", "healthy", "template"]
