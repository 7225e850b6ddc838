"""Engine ``megatron-deepspeed``: the launch of ``pretrain_gpt.py``, known before anything starts.

Everything here is computed from the configuration and the machines; nothing is read or written. The flags are those
that hotsuyuki/Megatron-DeepSpeed takes at the guide's tag (``megatron/arguments.py``), with what the published scripts
get wrong put right: a real stop, the precision that was asked for, a learning rate that decays over the steps that are
run, a master port, a checkpoint folder that does not depend on the number of GPUs. The published launches themselves
are in :mod:`pipeline.engines.megatron_compat`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, section, steps
from pipeline.engines import wandb_report
from pipeline.errors import Problem
from pipeline.i18n import _
from pipeline.launch import Launch, Machines

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The checkout's folder in the workspace, and the script in it that trains (Step 0-4, step 2).
CHECKOUT, SCRIPT = "Megatron-DeepSpeed", "pretrain_gpt.py"
#: The compatibility launcher, relative to the folder that holds this package.
START = Path("pipeline", "engines", "megatron_start.py")
DS_CONFIG = "ds_config.json"


@dataclass(frozen=True)
class Places:
    """Where a launch's files are: ``corpus`` is the prefix of ``.bin`` and ``.idx``, ``code`` holds this package.

    ``files`` is the folder that the launch's own files are written into.
    """

    corpus: Path
    tokenizer: Path
    checkpoints: Path
    tensorboard: Path
    files: Path
    code: Path
    #: The group of the run on Weights & Biases.
    group: str = ""


def precision(config: Config, machines: Machines) -> str:
    """``fp32``, ``fp16`` or ``bf16``: what is asked for; ``auto`` is fp32 on a CPU, else fp16 as the guide computes."""
    if config.pretrain.precision != "auto":
        return config.pretrain.precision
    return "fp32" if machines.device == "cpu" else "fp16"


def problems(config: Config, machines: Machines) -> list[Problem]:
    """Everything that keeps this configuration from running on these machines."""
    found: list[tuple[str, str]] = []
    parallel, model, pretrain = config.parallel, config.model, config.pretrain
    split = parallel.tp * parallel.pp
    for size, name, divisor, other in (
        (machines.world_size, _("The number of processes"), split, "parallel.tp x parallel.pp"),
        (model.heads, "model.heads", parallel.tp, "parallel.tp"),
        (model.layers, "model.layers", parallel.pp, "parallel.pp"),
    ):
        if size % divisor:
            text = _("{name} {size} is not divisible by {other} {divisor}.")
            found.append((text.format(name=name, size=size, other=other, divisor=divisor), ""))
    if not machines.world_size % split and pretrain.micro_batch_size:
        data_parallel = machines.data_parallel(parallel)
        if pretrain.global_batch_size % (pretrain.micro_batch_size * data_parallel):
            text = _(
                "pretrain.global_batch_size {total} is not divisible by pretrain.micro_batch_size {micro} x "
                "{parallel} data-parallel processes."
            )
            micro = pretrain.micro_batch_size
            found.append((text.format(total=pretrain.global_batch_size, micro=micro, parallel=data_parallel), ""))
    if parallel.zero >= 2 and parallel.pp > 1:
        hint = _("Use `--set parallel.zero=1`, or `--set parallel.pp=1`.")
        found.append((_("DeepSpeed's pipeline does not work with ZeRO 2 and 3."), hint))
    if machines.compat and config.pretrain.precision == "bf16":
        found.append((_("No published launch computes in bf16."), _("Use `--set pretrain.precision=fp16`.")))
    elif precision(config, machines) == "bf16" and not parallel.zero:
        hint = _("Use `--set parallel.zero=1`.")
        found.append((_("DeepSpeed's pipeline computes in bf16 only with ZeRO 1."), hint))
    if machines.device == "cpu" and precision(config, machines) != "fp32":
        hint = _("Use `--set pretrain.precision=fp32`.")
        found.append((_("On a CPU this engine computes in fp32 only."), hint))
    if config.wandb.mode != "off" and machines.compat and not (config.wandb.entity and config.wandb.project):
        hint = _("Add `--set wandb.entity=… --set wandb.project=…`.")
        found.append((_("The published launch names an entity and a project of Weights & Biases."), hint))
    return [Problem("config.contradiction", what, hint=hint) for what, hint in found]


def launch(config: Config, machines: Machines, places: Places) -> Launch:
    """What is started: the launcher of the cluster, our start module, the guide's script, its flags and files."""
    from pipeline.launch import styles

    script = machines.workspace / CHECKOUT / SCRIPT
    settings = json.dumps(deepspeed_config(config, machines), indent=1) + "\n"
    words = [str(script), *flags(config, machines, places)]
    variables = environment(config, machines, places)
    start, seen = str(places.code / START), machines.gpus_here
    started = styles.wrap(machines, start, words, env=variables, folder=places.files, gpus_here=seen)
    return Launch(started.argv, started.env, {DS_CONFIG: settings, **started.files})


def environment(config: Config, machines: Machines, places: Places) -> dict[str, str]:
    """The variables on top of the activated environment's.

    ``MAKEFLAGS`` names the extension suffix of the environment's own Python: ``megatron/data/Makefile`` asks the first
    ``python3-config`` on PATH, and Megatron runs it at every start (UPSTREAM, the helpers trap). The key of Weights &
    Biases is never set here.
    """
    found = {"MAKEFLAGS": f"LIBEXT={machines.extension_suffix}", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if machines.device == "cpu":
        # LOCAL_SIZE: deepspeed/accelerator/cpu_accelerator.py counts devices by it, else by numactl.
        found = {"MAKEFLAGS": found["MAKEFLAGS"], "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(machines.slots)}
    return found | wandb_report.variables(section(config, "wandb"), places.group, places.files.parent)


def flags(config: Config, machines: Machines, places: Places) -> list[str]:
    """The words behind ``pretrain_gpt.py``."""
    pretrain, model = config.pretrain, config.model
    total = steps(config)
    samples = total * pretrain.global_batch_size
    held_out = round(1000 * pretrain.validation_fraction)
    found = [
        *model_flags(config),
        *step_flags(config),
        *pairs(
            {
                "--train-samples": samples,
                "--train-tokens": samples * pretrain.seq_length,
                "--lr-decay-tokens": samples * pretrain.seq_length,
                "--lr-warmup-tokens": pretrain.warmup_steps * pretrain.global_batch_size * pretrain.seq_length,
                "--lr": rate(pretrain.learning_rate),
                "--min-lr": rate(pretrain.min_learning_rate),
                "--split": f"{1000 - held_out},{held_out},0",
                "--hidden-dropout": model.dropout,
                "--attention-dropout": model.dropout,
            }
        ),
        *precision_flags(precision(config, machines)),
        # A stop that is asked for ends the step, saves and exits: a rank that hears SIGTERM tells the others.
        "--exit-signal-handler",
    ]
    if pretrain.hours:
        found += ["--exit-duration-in-mins", str(max(1, math.ceil(pretrain.hours * 60)))]
    if machines.device == "cpu":
        found += ["--distributed-backend", "gloo", "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion"]
    elif precision(config, machines) != "fp32":  # flash-attn 2 knows only the 16-bit types
        found.append("--use-flash-attn-v2")
    return found + place_flags(places) + parallel_flags(config, places, no_pipeline=config.parallel.zero >= 2)


def model_flags(config: Config) -> list[str]:
    """The model's shape."""
    model, length = config.model, config.pretrain.seq_length
    return pairs(
        {
            "--num-layers": model.layers,
            "--hidden-size": model.hidden_size,
            "--num-attention-heads": model.heads,
            "--seq-length": length,
            "--max-position-embeddings": length,
            "--init-method-std": model.init_std,
        }
    )


def step_flags(config: Config) -> list[str]:
    """What every step does, and how often it is logged, judged and saved; the published launches say the same."""
    pretrain = config.pretrain
    found = pairs(
        {
            "--micro-batch-size": pretrain.micro_batch_size,
            "--global-batch-size": pretrain.global_batch_size,
            "--lr-decay-style": "cosine",
            "--adam-beta1": pretrain.adam_beta1,
            "--adam-beta2": pretrain.adam_beta2,
            "--weight-decay": pretrain.weight_decay,
            "--clip-grad": pretrain.clip_grad,
            "--log-interval": pretrain.log_interval,
            "--eval-interval": pretrain.eval_interval,
            "--eval-iters": pretrain.eval_iters,
            "--save-interval": pretrain.save_interval,
            "--num-workers": 0,
            "--seed": pretrain.seed,
        }
    )
    found += ["--override-opt_param-scheduler", "--no-async-tensor-model-parallel-allreduce"]
    if pretrain.activation_checkpointing:
        found += ["--checkpoint-activations", "--deepspeed-activation-checkpointing"]
    return found


def place_flags(places: Places) -> list[str]:
    """Where things are read and written."""
    return [
        *pairs(
            {
                "--load": places.checkpoints,
                "--save": places.checkpoints,
                "--tokenizer-type": "SentencePieceTokenizer",
                "--tokenizer-model": places.tokenizer,
                "--data-path": places.corpus,
                "--data-impl": "mmap",
                "--tensorboard-dir": places.tensorboard,
                "--tensorboard-queue-size": 1,
            }
        ),
        "--log-timers-to-tensorboard",
        "--log-batch-size-to-tensorboard",
        "--log-validation-ppl-to-tensorboard",
    ]


def parallel_flags(config: Config, places: Places, *, no_pipeline: bool = False) -> list[str]:
    """How the model is spread, and DeepSpeed's configuration.

    The pipeline form is kept with one stage too: only it writes the ``layer_*`` files that can be converted.
    """
    found = pairs(
        {
            "--tensor-model-parallel-size": config.parallel.tp,
            "--pipeline-model-parallel-size": config.parallel.pp,
            "--zero-stage": config.parallel.zero,
            "--deepspeed_config": places.files / DS_CONFIG,
        }
    )
    return [*found, "--deepspeed", *(["--no-pipeline-parallel"] if no_pipeline else [])]


def precision_flags(name: str) -> list[str]:
    """fp32 has no flag."""
    return {"fp16": ["--fp16", "--hysteresis", "2"], "bf16": ["--bf16"]}.get(name, [])


def deepspeed_config(config: Config, machines: Machines) -> dict[str, Any]:
    """DeepSpeed's configuration: the published template's values, and only the precision that is computed in.

    ``steps_per_print``, the loss scale's values and ``prescale_gradients`` (only without ZeRO) are those of
    ``examples_deepspeed/rebase/ds_config_gpt_TEMPLATE.json`` and the scripts around it.
    """
    name = precision(config, machines)
    found: dict[str, Any] = {
        "train_batch_size": config.pretrain.global_batch_size,
        "train_micro_batch_size_per_gpu": config.pretrain.micro_batch_size,
        "steps_per_print": config.pretrain.log_interval,
        "zero_optimization": {"stage": config.parallel.zero},
        "gradient_clipping": config.pretrain.clip_grad,
        "prescale_gradients": config.parallel.zero == 0 and name != "bf16",
        "wall_clock_breakdown": False,
    }
    if name == "fp16":
        found["fp16"] = FP16
    if name == "bf16":
        found.update({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}})
    if machines.device == "cpu" and config.parallel.zero:
        # DeepSpeed's own optimizers need a compiler for this processor; Megatron's Adam is torch's.
        found["zero_allow_untested_optimizer"] = True
    return found


#: ds_config_gpt_TEMPLATE.json.
FP16: Mapping[str, Any] = {
    "enabled": True,
    "loss_scale": 0,
    "loss_scale_window": 500,
    "hysteresis": 2,
    "min_loss_scale": 1,
    "initial_scale_power": 11,
}


def rate(value: float) -> str:
    """A learning rate as the published scripts write it: ``6.0e-4``."""
    mantissa, exponent = f"{value:e}".split("e")
    digits = mantissa.rstrip("0")
    return f"{digits + '0' if digits.endswith('.') else digits}e{int(exponent)}" if value else "0.0"


def pairs(values: Mapping[str, Any]) -> list[str]:
    """``--flag value`` of each, in order."""
    words: Sequence[tuple[str, str]] = [(flag, str(value)) for flag, value in values.items()]
    return [word for pair in words for word in pair]
