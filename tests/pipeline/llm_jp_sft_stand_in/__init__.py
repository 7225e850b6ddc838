"""Stand-ins for what only the guide's environment has: llm-jp-sft's script, and the collator of an old trl."""
