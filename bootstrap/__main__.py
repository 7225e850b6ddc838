"""``python -m bootstrap`` is ``ucllm``."""

from bootstrap.cli import main

main()
