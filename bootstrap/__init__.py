"""Everything before training: facts, checks, findings and fixes, and the command line."""

__version__ = "0.1.0"
