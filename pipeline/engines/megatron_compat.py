"""The published launches of pretraining, for ``--compat v0.3`` and ``--compat v0.71``.

With it a launch has the flags and values of the script of matsuolab/ucllm_nedo_prod at that tag for the same cluster
and parallelism, its defects included (docs/launches.md names them): 300 billion tokens are the only stop, the learning
rate decays over them, an fp32 run has a DeepSpeed configuration that says fp16, and v0.3 sets no master port. Only
paths are ours.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.config import Config
from pipeline.engines import megatron
from pipeline.engines.megatron import (
    CHECKOUT,
    DS_CONFIG,
    FP16,
    SCRIPT,
    Places,
    environment,
    model_flags,
    pairs,
    parallel_flags,
    place_flags,
    precision,
    precision_flags,
    rate,
    step_flags,
)
from pipeline.launch import Launch, Machines

#: "original GPT-3 paper trains for 300B tokens"; 3 billion of warm-up; a limit of time that is none.
TRAIN_TOKENS, WARMUP_TOKENS, EXIT_MINUTES = 300_000_000_000, 3_000_000_000, 30_000_000
#: Where the scripts write a learning rate in another way.
RATES = {6.0e-5: "0.6e-4"}
VERSIONS = ("v0.3", "v0.71")


def launch(config: Config, machines: Machines, places: Places) -> Launch:
    """The published launch. Variables are ours: they replace the scripts' edits of ``~/.bashrc`` and ``~/.ssh``."""
    from pipeline.launch import styles

    script = str(machines.workspace / CHECKOUT / SCRIPT)
    variables = environment(config, machines, places)
    started = styles.wrap(machines, script, flags(config, machines, places), env=variables, folder=places.files)
    settings = json.dumps(deepspeed_config(config, machines), indent=1) + "\n"
    return Launch(started.argv, started.env, {DS_CONFIG: settings, **started.files})


def flags(config: Config, machines: Machines, places: Places) -> list[str]:
    """The words behind ``pretrain_gpt.py``."""
    pretrain = config.pretrain
    found = pairs(
        {
            "--lr-decay-tokens": TRAIN_TOKENS,
            "--lr-warmup-tokens": WARMUP_TOKENS,
            "--exit-duration-in-mins": EXIT_MINUTES,
            "--train-tokens": TRAIN_TOKENS,
            # "we just set this config large enough": twice the tokens.
            "--train-samples": TRAIN_TOKENS * 2 // pretrain.seq_length,
            "--lr": RATES.get(pretrain.learning_rate) or rate(pretrain.learning_rate),
            "--min-lr": rate(pretrain.min_learning_rate),
            "--split": "949,50,1",
            "--hysteresis": 2,
        }
    )
    return [
        *model_flags(config),
        *step_flags(config),
        *found,
        *precision_flags(precision(config, machines))[:1],
        "--use-flash-attn-v2",
        "--log-optimizer-states-to-tensorboard",
        *place_flags(places),
        *parallel_flags(config, places),
        *wandb_flags(config, places.group),
    ]


def wandb_flags(config: Config, group: str) -> list[str]:
    """Underscores, as the later tags of the forks take them; at the guide's own tag Megatron knows none of them."""
    if config.wandb.mode == "off":
        return []
    values = {"--wandb_entity": config.wandb.entity, "--wandb_project": config.wandb.project}
    return ["--use_wandb", *pairs({**values, "--wandb_group": group})]


def deepspeed_config(config: Config, machines: Machines) -> dict[str, Any]:
    """``ds_config_gpt_TEMPLATE.json`` filled in: fp16 is always on in it, and the clipping is its own."""
    return {**megatron.deepspeed_config(config, machines), "gradient_clipping": 1.0, "fp16": FP16}
