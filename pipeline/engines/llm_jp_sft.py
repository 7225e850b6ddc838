"""Engine ``llm-jp-sft``: the launch of hotsuyuki/llm-jp-sft's ``train.py`` (step 4), known before anything starts.

Everything here is computed from the configuration and the machines; nothing is read or written. With ``--compat`` it is
the launch of the published scripts, whose DeepSpeed configuration overrides the cosine schedule that the command line
asks for (``WarmupLR``) and moves the optimizer to the CPU. Ours leaves the schedule to the Trainer, and starts the
script by :mod:`pipeline.engines.llm_jp_sft_start`, so that a training can be stopped and continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoints import Kind
from pipeline.config import Config, section
from pipeline.engines import lora, megatron, wandb_report
from pipeline.engines.megatron_compat import wandb_flags
from pipeline.errors import Problem
from pipeline.i18n import _
from pipeline.launch import Launch, Machines

CHECKOUT, SCRIPT = "llm-jp-sft", "train.py"
#: What starts the script in ours, relative to the folder that holds this package.
START = Path("pipeline", "engines", "llm_jp_sft_start.py")
#: Tokens of a conversation where the launch does not say it: ``train.py``, ``max_seq_length``.
MAX_SEQ_LENGTH = 2048
#: The Trainer's checkpoints; those of DeepSpeed may be large.
CHECKPOINTS = Kind("checkpoint-", hashed=False)
#: The share of all steps from one checkpoint to the next (the Trainer takes a number below 1 so); as engine ``trl``.
SAVE_EVERY = 0.1
#: The form of a conversation; the templates of the published launches.
INSTRUCTION, RESPONSE = "### Human:", "### Assistant:"
DS_CONFIG, ACCELERATE_CONFIG = "ds_config.json", "accelerate_config.yaml"


@dataclass(frozen=True)
class Places:
    """Where a launch's files are: ``model`` and ``data`` are read, ``output`` is written, ``files`` are its own."""

    model: Path | str
    data: Path
    output: Path
    files: Path
    #: The group of the run on Weights & Biases.
    group: str = ""
    #: What holds this package.
    code: Path = Path()
    #: How many tokens the model reads; 0 where that is not known yet.
    length: int = 0


def problems(config: Config, machines: Machines) -> list[Problem]:
    """Everything that keeps this configuration from running on these machines."""
    finetune, zero = config.finetune, config.parallel.zero
    several = len(machines.hosts) > 1
    found: list[tuple[str, str]] = []
    if finetune.launcher == "deepspeed" and zero not in (2, 3):
        hint = _("Use `--set parallel.zero=2` or `--set parallel.zero=3`.")
        found.append((_("Fine-tuning with the deepspeed launcher shards by ZeRO 2 or 3."), hint))
    if finetune.launcher != "deepspeed" and several:
        hint = _("Use `--set finetune.launcher=deepspeed`.")
        found.append((_("Fine-tuning on several nodes is for the deepspeed launcher."), hint))
    if finetune.lora_rank and several:
        found.append((_("LoRA is for one node."), _("Use `--nodes 1`, or `--set finetune.lora_rank=0`.")))
    if finetune.packing:
        hint = _("Use `--set finetune.packing=false`, or `--engine trl`.")
        found.append((_("llm-jp-sft learns only from answers, and so cannot pack conversations."), hint))
    if machines.device == "cpu" and finetune.launcher != "none":
        found.append((_("On a CPU fine-tuning is one process."), _("Use `--set finetune.launcher=none`.")))
    return [Problem("config.contradiction", what, hint=hint) for what, hint in found]


def launch(config: Config, machines: Machines, places: Places) -> Launch:
    """What is started, its variables and its files."""
    script = str(machines.workspace / CHECKOUT / SCRIPT)
    words = flags(config, machines, places)
    if not machines.compat:
        script, words = str(places.code / START), [script, *words]
    variables = environment(config, machines, places)
    launcher = config.finetune.launcher
    if launcher == "deepspeed":
        from pipeline.launch import styles

        started = styles.wrap(machines, script, words, env=variables, folder=places.files, gpus_here=machines.gpus_here)
        settings = json.dumps(deepspeed_config(config, machines), indent=1) + "\n"
        return Launch(started.argv, started.env, {DS_CONFIG: settings, **started.files})
    python = "python" if machines.compat else str(machines.python)
    if launcher == "none":
        return Launch((python, script, *words), variables)
    if machines.compat:
        published = (
            machines.workspace / CHECKOUT / "configs" / f"accelerate_config_zero{max(1, config.parallel.zero)}.yaml"
        )
        return Launch(("accelerate", "launch", "--config_file", str(published), script, *words), variables)
    start = (python, "-m", "accelerate.commands.launch", "--config_file", str(places.files / ACCELERATE_CONFIG))
    return Launch((*start, script, *words), variables, {ACCELERATE_CONFIG: accelerate_config(config, machines)})


def environment(config: Config, machines: Machines, places: Places) -> dict[str, str]:
    """The variables on top of the activated environment's."""
    found = wandb_report.variables(section(config, "wandb"), places.group, places.files.parent)
    if not machines.compat:
        found["PYTHONUNBUFFERED"] = "1"  # the log is heard as it is written
    if machines.device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    elif config.finetune.launcher == "none" and not machines.compat:
        # One process: given several GPUs, the Trainer would split every batch among them.
        found["CUDA_VISIBLE_DEVICES"] = "0"
    return found


def flags(config: Config, machines: Machines, places: Places) -> list[str]:
    """The words behind ``train.py``."""
    finetune, published = config.finetune, bool(machines.compat)
    several = finetune.launcher != "none"
    found = megatron.pairs(
        {
            "--num_train_epochs": f"{finetune.epochs:g}",
            "--per_device_train_batch_size": finetune.micro_batch_size,
            "--learning_rate": rate(finetune.learning_rate),
            "--warmup_ratio": finetune.warmup_ratio,
            "--lr_scheduler_type": "cosine",
            "--data_files": places.data,
            "--model_name_or_path": places.model,
            "--output_dir": places.output,
            "--instruction_template": INSTRUCTION,
            "--response_template": RESPONSE,
        }
    )
    found.append("--bf16")
    if several or finetune.gradient_accumulation_steps > 1:
        found += ["--gradient_accumulation_steps", str(finetune.gradient_accumulation_steps)]
    # Unless it is told, train.py takes a length that a small model cannot read.
    length = finetune.max_seq_length or (0 if published else places.length)
    if length:
        found += ["--max_seq_length", str(length)]
    if finetune.gradient_checkpointing or (published and finetune.launcher == "deepspeed"):
        found.append("--gradient_checkpointing")
    if finetune.launcher == "deepspeed":
        found += ["--deepspeed", str(places.files / DS_CONFIG)]
    if machines.compat == "v0.71":
        found += ["--use_fast", "False"]
    if published:
        return found + (["--logging_steps", "1"] if several else []) + wandb_flags(config, places.group)
    if finetune.lora_rank:
        adapters = {"--peft_lora_r": finetune.lora_rank, "--peft_lora_alpha": lora.ALPHA}
        found += ["--use_peft", "True", *megatron.pairs({**adapters, "--peft_lora_dropout": lora.DROPOUT})]
    if machines.device == "cpu":
        found.append("--use_cpu")
    report = "wandb" if config.wandb.mode != "off" else "none"
    ours = {"--logging_steps": 1, "--seed": finetune.seed, "--report_to": report}
    ours.update({"--save_strategy": "steps", "--save_steps": SAVE_EVERY, "--save_total_limit": 2})
    # The Trainer would hide a loss that is not a number, and draws bars that a log cannot show.
    ours.update({"--logging_nan_inf_filter": False, "--disable_tqdm": True})
    return [*found, *megatron.pairs(ours)]


def rate(value: float) -> str:
    """A learning rate as the published scripts of step 4 write it: ``1e-5``."""
    mantissa, exponent = megatron.rate(value).split("e")
    return f"{mantissa.removesuffix('.0')}e{exponent}"


#: The DeepSpeed configurations that both tags have beside their scripts (``ds_config_zero2.json``, ``…zero3.json``).
_COMMON: Mapping[str, Any] = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 10,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
_CPU: Mapping[str, Any] = {"device": "cpu", "pin_memory": True}
_ZERO: Mapping[int, Mapping[str, Any]] = {
    2: {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    3: {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def deepspeed_config(config: Config, machines: Machines) -> dict[str, Any]:
    """Ours is the published one without its ``WarmupLR`` and without moving anything to the CPU."""
    zero = dict(_ZERO[config.parallel.zero if config.parallel.zero in _ZERO else 2])
    if not machines.compat:
        return {**_COMMON, "zero_optimization": zero}
    zero["offload_optimizer"] = _CPU
    if zero["stage"] == 3:
        zero["offload_param"] = _CPU
    warmup = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")
    return {**_COMMON, "scheduler": {"type": "WarmupLR", "params": warmup}, "zero_optimization": zero}


def accelerate_config(config: Config, machines: Machines) -> str:
    """accelerate's settings for the GPUs of one node; JSON is YAML."""
    zero = config.parallel.zero
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED" if zero else "MULTI_GPU",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": machines.slots,
        "machine_rank": 0,
        "main_process_port": machines.port,
        "main_training_function": "main",
        "use_cpu": False,
    }
    if zero:
        # The Trainer leaves clipping to DeepSpeed (its max_grad_norm is 1), and saves a whole model only if asked to.
        found["deepspeed_config"] = {"zero_stage": zero, "gradient_clipping": 1.0}
        found["deepspeed_config"].update({"zero3_save_16bit_model": True} if zero == 3 else {})
    return json.dumps(found, indent=1) + "\n"
