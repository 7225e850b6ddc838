"""Recorded launches of the published scripts, read, and the command of ours that starts the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Flags whose values are places, a time, or made of both: only their presence can be compared.
PLACES = {
    "--load", "--save", "--tensorboard-dir", "--tokenizer-model", "--data-path", "--deepspeed_config", "--hostfile",
    "--wandb_group", "--data_files", "--model_name_or_path", "--output_dir", "--config_file",
}  # fmt: skip
SIZES = {"768": "0.125b", "2048": "1.3b"}


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
    """``ucllm`` arguments that ask for the launch of this record."""
    said = flags(record["argv"])
    one = {name: words[0] for name, words in said.items() if words}
    family = record["script"].split("/")[1]
    cluster = family.split("_node-")[0]
    words = ["--cluster", cluster, "--nodes", str(record["nodes"]), "--gpus-per-node", str(record["gpus_per_node"])]
    words += ["--compat", record["upstream"], "--dry-run", "--json"]
    settings: dict[str, str] = {}
    if "--use_wandb" in said:
        settings.update({"wandb.mode": "online", "wandb.entity": "ent", "wandb.project": "proj"})
    if "step4" in record["script"]:
        argv = record["argv"]
        launcher = argv[0] if argv[0] in ("deepspeed", "accelerate") else "none"
        settings.update(
            {
                "finetune.launcher": launcher,
                "finetune.epochs": one["--num_train_epochs"],
                "finetune.micro_batch_size": one["--per_device_train_batch_size"],
                "finetune.gradient_accumulation_steps": one.get("--gradient_accumulation_steps", "1"),
                "finetune.max_seq_length": one.get("--max_seq_length", "0"),
            }
        )
        if launcher == "deepspeed":
            settings["parallel.zero"] = "3" if "zero-3" in record["script"] else "2"
        recipe, stage, engine = "gpt-0.125b", "finetune", "llm-jp-sft"
    else:
        names = {
            "parallel.tp": "--tensor-model-parallel-size",
            "parallel.pp": "--pipeline-model-parallel-size",
            "parallel.zero": "--zero-stage",
            "pretrain.micro_batch_size": "--micro-batch-size",
            "pretrain.global_batch_size": "--global-batch-size",
            "pretrain.seq_length": "--seq-length",
            "pretrain.eval_interval": "--eval-interval",
            "pretrain.eval_iters": "--eval-iters",
            "pretrain.save_interval": "--save-interval",
        }
        settings.update({key: one[flag] for key, flag in names.items()})
        settings["pretrain.precision"] = "fp16" if "--fp16" in said else "fp32"
        recipe, stage, engine = f"gpt-{SIZES[one['--hidden-size']]}", "pretrain", "megatron-deepspeed"
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", stage, "--engine", engine, "--recipe", recipe, *words, *pairs]
