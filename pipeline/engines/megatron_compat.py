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
from pipeline.engines.megatron import (
    CHECKOUT,
    DS_CONFIG,
    FP16,
    SCRIPT,
    Places,
    batch,
    environment,
    model_flags,
    pairs,
    parallel_flags,
    place_flags,
    precision_flags,
    rate,
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
    del machines
    pretrain = config.pretrain
    found = [
        *model_flags(config),
        *pairs(
            {
                "--adam-beta1": pretrain.adam_beta1,
                "--adam-beta2": pretrain.adam_beta2,
                "--lr-decay-tokens": TRAIN_TOKENS,
                "--lr-warmup-tokens": WARMUP_TOKENS,
                "--micro-batch-size": pretrain.micro_batch_size,
                "--exit-duration-in-mins": EXIT_MINUTES,
                "--global-batch-size": pretrain.global_batch_size,
                "--train-tokens": TRAIN_TOKENS,
                # "we just set this config large enough": twice the tokens.
                "--train-samples": TRAIN_TOKENS * 2 // pretrain.seq_length,
                "--lr": RATES.get(pretrain.learning_rate) or rate(pretrain.learning_rate),
                "--min-lr": rate(pretrain.min_learning_rate),
                "--lr-decay-style": "cosine",
                "--split": "949,50,1",
                "--log-interval": pretrain.log_interval,
                "--eval-interval": pretrain.eval_interval,
                "--eval-iters": pretrain.eval_iters,
                "--save-interval": pretrain.save_interval,
                "--weight-decay": pretrain.weight_decay,
                "--clip-grad": pretrain.clip_grad,
                "--hysteresis": 2,
                "--num-workers": 0,
                "--seed": pretrain.seed,
            }
        ),
        *([] if pretrain.precision == "fp32" else [precision_flags(_precision(config))[0]]),
        "--override-opt_param-scheduler",
        "--no-async-tensor-model-parallel-allreduce",
        "--use-flash-attn-v2",
        "--log-optimizer-states-to-tensorboard",
    ]
    if pretrain.activation_checkpointing:
        found += ["--checkpoint-activations", "--deepspeed-activation-checkpointing"]
    return [*found, *place_flags(places), *parallel_flags(config, places), *wandb_flags(config, places.group)]


def wandb_flags(config: Config, group: str) -> list[str]:
    """Underscores, as the later tags of the forks take them; at the guide's own tag Megatron knows none of them."""
    if config.wandb.mode == "off":
        return []
    values = {"--wandb_entity": config.wandb.entity, "--wandb_project": config.wandb.project}
    return ["--use_wandb", *pairs({**values, "--wandb_group": group})]


def deepspeed_config(config: Config, machines: Machines) -> dict[str, Any]:
    """``ds_config_gpt_TEMPLATE.json`` filled in: fp16 is always on in it."""
    return {
        "train_batch_size": config.pretrain.global_batch_size,
        "train_micro_batch_size_per_gpu": batch(config, machines).micro,
        "steps_per_print": config.pretrain.log_interval,
        "zero_optimization": {"stage": config.parallel.zero},
        "gradient_clipping": 1.0,
        "prescale_gradients": config.parallel.zero == 0,
        "fp16": dict(FP16),
        "wall_clock_breakdown": False,
    }


def _precision(config: Config) -> str:
    return "fp16" if config.pretrain.precision == "auto" else config.pretrain.precision
