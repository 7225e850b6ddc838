"""Recorded launches of the published scripts, read, and the documented command of ours that starts the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tests.conftest import REPOSITORY

#: Flags whose values are places, a time, or made of both: only their presence can be compared.
PLACES = {
    "--load", "--save", "--tensorboard-dir", "--tokenizer-model", "--data-path", "--deepspeed_config", "--hostfile",
    "--wandb_group", "--data_files", "--model_name_or_path", "--output_dir", "--config_file",
}  # fmt: skip
WANDB = ("--set", "wandb.mode=online", "--set", "wandb.entity=ent", "--set", "wandb.project=proj")
TABLE = REPOSITORY / "docs" / "launches.md"


def flags(argv: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Flag to values, the launcher's and the script's; of a path only the name of a script is kept."""
    found: dict[str, list[str]] = {}
    values: list[str] = found.setdefault("", [])
    for word in argv:
        # "### Human:" is a value, as a negative number would be.
        if word.startswith("--"):
            values = found.setdefault(word, [])
            name = word
        elif word.endswith(".py"):
            found[""].append(word.rpartition("/")[2])
        elif values is found[""] or (name not in PLACES and "/" not in word):
            values.append(word.rpartition("/")[2])
    return {name: tuple(words) for name, words in found.items()}


def command(record: Mapping[str, Any]) -> list[str]:
    """``ucllm`` arguments of ``docs/launches.md`` for the script of this record; W&B as the record has it."""
    script = record["script"].replace("step2_pretrain_model", "step2").replace("step4_finetune_model", "step4")
    _before, text = TABLE.read_text(encoding="utf-8").split(f"\n### {record['upstream']}\n", 1)
    for line in text.split("\n### ", 1)[0].splitlines():
        if line.startswith(f"| `{script}` | `"):
            words = shlex.split(line.split("`")[3])[1:]
            return [*words, *(WANDB if "--use_wandb" in record["argv"] else ()), "--dry-run", "--json"]
    raise AssertionError(f"{TABLE} has no row for {script}")
