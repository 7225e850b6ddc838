"""Engine ``torch``: a GPT-2 trained by Hugging Face's Trainer, over samples made on the fly.

Everything that decides the result is restored by the Trainer's own checkpoints (weights, optimizer, schedule, random
numbers) or computed from the step (samples), so a run that is killed and started again ends where it would have.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import full_disk_is_named, marking_callback, starting_point
from pipeline.engines import wandb_report
from pipeline.engines.watcher import watcher_class
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.precision import choose, use_one_gpu
from pipeline.samples import Part, TrainingSamples, tail_windows

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.events import Reporter

#: Standard deviation of the initial weights where the configuration has none: GPT-2's and Megatron's default.
INIT_STD = 0.02
#: Tokens in one forward pass of an evaluation: as many as bound its memory to a few hundred megabytes of logits.
EVALUATION_TOKENS = 4096
#: fp32 weights, gradients and the two moments of AdamW, in bytes a parameter; a checkpoint has all but the gradients.
MEMORY_PER_PARAMETER, CHECKPOINT_PER_PARAMETER, MODEL_PER_PARAMETER = 16, 12, 4


@dataclass(frozen=True)
class Task:
    """What to train: ``settings`` and ``shape`` are the tables ``pretrain`` and ``model`` of the configuration.

    ``schedule`` holds what changes nothing in the result: eval_interval, save_interval, keep_checkpoints, log_interval,
    and may hold ``hours`` (since the start of this process, as Megatron counts them; 0: no limit) and the table
    ``wandb``. ``activation_checkpointing`` is read from either.
    ``vocab_size`` is the padded one, ``special_ids`` the bos, eos and pad ids that the model's configuration names.
    """

    settings: Mapping[str, Any]
    shape: Mapping[str, Any]
    schedule: Mapping[str, Any]
    vocab_size: int
    special_ids: Mapping[str, int | None]
    training: Part
    held_out: Part
    checkpoints: Path
    tensorboard: Path


@dataclass(frozen=True)
class Trained:
    """The trained model, in fp32; the Trainer's history, a dictionary a log; the precision it was trained in.

    ``steps`` are those that the model was trained for, also by earlier processes. ``stopped_by`` is ``steps``, or
    ``hours`` when the time was over before they were done.
    """

    model: Any
    history: list[dict[str, Any]]
    precision: str
    steps: int
    stopped_by: str


def problems(config: Config) -> list[Problem]:
    """What this engine cannot do of a configuration: it is one process on one device."""
    found = []
    parallel = config.parallel
    for key, value, alone in (("tp", parallel.tp, 1), ("pp", parallel.pp, 1), ("zero", parallel.zero, 0)):
        if value > alone:
            what = _("parallel.{key}={value} needs several processes, and engine torch is one, on one device.")
            hint = _("Use `--set parallel.{key}={alone}`, or `--engine megatron-deepspeed`.")
            filled = what.format(key=key, value=value), hint.format(key=key, alone=alone)
            found.append(Problem("config.contradiction", filled[0], hint=filled[1]))
    return found


def build_model(task: Task) -> Any:
    """A ``GPT2LMHeadModel`` as Megatron-DeepSpeed's GPT is: tanh GELU, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = task.shape
    dropout = shape["dropout"]
    config = GPT2Config(
        vocab_size=task.vocab_size,
        n_positions=task.settings["seq_length"],
        n_embd=shape["hidden_size"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        activation_function="gelu_new",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=shape.get("attention_dropout", dropout),
        initializer_range=shape.get("init_std", INIT_STD),
        tie_word_embeddings=True,
        # The forward pass of every other version warns when no loss is named.
        loss_type="ForCausalLM",
        **task.special_ids,
    )
    return GPT2LMHeadModel(config)


def total_loss(model: Any, tokens: Any, seq_length: int) -> tuple[float, int]:
    """The summed loss in nats over all of ``tokens`` but the first, and how many those are. Leaves the mode as it was.

    Each token is predicted once, from at most ``seq_length`` tokens before it.
    """
    import torch
    from torch.nn.functional import cross_entropy

    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in _batches(tokens, seq_length):
            ids = torch.from_numpy(batch).to(model.device)
            logits = model(input_ids=ids[:, :-1]).logits.float()
            total += cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
            count += ids[:, 1:].numel()
    model.train(was_training)
    return total, count


def _batches(tokens: Any, seq_length: int) -> Iterator[Any]:
    """The windows of :func:`tail_windows`, stacked; the shorter last one is a batch of its own."""
    import numpy as np

    rows = max(1, EVALUATION_TOKENS // seq_length)
    waiting: list[Any] = []
    for window in tail_windows(tokens, seq_length):
        if waiting and (len(waiting) == rows or len(window) != len(waiting[0])):
            yield np.stack(waiting)
            waiting = []
        waiting.append(window)
    if waiting:
        yield np.stack(waiting)


def train(task: Task, report: Reporter) -> Trained:
    """Train to ``settings["steps"]``, continuing from the newest whole checkpoint of ``task.checkpoints``.

    ``schedule["hours"]`` may end it sooner, with a checkpoint. Raises :class:`UcllmError` when the loss is not a
    number, the precision impossible, memory or disk too small, or Weights & Biases wanted and not there.
    """
    began = time.monotonic()
    use_one_gpu()
    reporting = wandb_report.report_to(task.schedule.get("wandb", {}), _home(task), "pretrain")
    import torch
    from transformers import set_seed

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    precision, reason = choose(task.settings["precision"])
    if reason:
        report.note(reason)
    set_seed(task.settings["seed"])
    model = build_model(task)
    parameters = sum(each.numel() for each in model.parameters())
    _check_room(task.checkpoints, parameters)
    start = starting_point(task.checkpoints, report)
    watch = _watcher(task, report)
    hours = task.schedule.get("hours", 0)
    if hours:
        watch.deadline = began + hours * 3600
    trainer = _trainer(task, model, precision, watch, reporting)
    needed = parameters * CHECKPOINT_PER_PARAMETER
    named = wandb_report.refusals_are_named(reporting != "none")
    with named, full_disk_is_named(task.checkpoints, needed), _small_gpu_is_named():
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    done = int(trainer.state.global_step)
    if watch.out_of_time:
        text = _("Stopped at step {step} of {steps}: pretrain.hours={hours} is over.")
        report.note(text.format(step=done, steps=task.settings["steps"], hours=hours))
    history = list(trainer.state.log_history)
    # Accelerate wraps the forward pass in autocast; what is saved and checked is the plain fp32 model.
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if _recomputes(task):
        plain.gradient_checkpointing_disable()
    return Trained(plain.eval(), history, precision, done, "hours" if watch.out_of_time else "steps")


def _home(task: Task) -> Path:
    """The run directory, which TensorBoard's folder lies in."""
    return task.tensorboard.parent


def _recomputes(task: Task) -> bool:
    """Whether activations are computed again in the backward pass."""
    return bool({**task.schedule, **task.settings}.get("activation_checkpointing", False))


def _trainer(task: Task, model: Any, precision: str, watch: Any, reporting: str) -> Any:
    """The Trainer, set up so that one pass over ``steps * global_batch_size`` samples is the whole run."""
    import torch
    from transformers import Trainer, TrainingArguments

    settings, schedule = task.settings, task.schedule
    length = settings["seq_length"]
    samples = TrainingSamples(task.training, length, settings["seed"])

    class _Samples(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not analysed: pyproject.toml
        def __len__(self) -> int:
            return int(settings["steps"]) * int(settings["global_batch_size"])

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(samples[index])

    def collate(windows: list[Any]) -> dict[str, Any]:
        ids = torch.stack(windows)
        # Given as `shift_labels`, the model does not shift: a sample has one token more than the model has positions.
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "shift_labels": ids[:, 1:].contiguous()}

    class _Trainer(Trainer):  # type: ignore[misc]
        control: Any

        def evaluate(
            self,
            eval_dataset: Any = None,  # noqa: ARG002  the Trainer's names
            ignore_keys: Any = None,  # noqa: ARG002
            metric_key_prefix: str = "eval",
        ) -> dict[str, float]:
            """The mean over tokens: the Trainer's own is over samples, and gives a shorter last one too much weight."""
            total, count = total_loss(self.model, task.held_out.tokens, length)
            metrics = {f"{metric_key_prefix}_loss": total / count}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    evaluates = len(task.held_out.tokens) > 1
    arguments = TrainingArguments(
        output_dir=str(task.checkpoints),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["micro_batch_size"],
        gradient_accumulation_steps=settings["global_batch_size"] // settings["micro_batch_size"],
        optim="adamw_torch_fused",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": settings["min_learning_rate"]},
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["adam_beta1"],
        adam_beta2=settings["adam_beta2"],
        max_grad_norm=settings["clip_grad"],
        seed=settings["seed"],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        logging_steps=schedule["log_interval"],
        logging_first_step=True,
        # The Trainer would hide a loss that is not a number.
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=schedule["eval_interval"],
        save_strategy="steps",
        save_steps=schedule["save_interval"],
        report_to=reporting,
        run_name=wandb_report.run_name(_home(task), "pretrain"),
        disable_tqdm=True,
        remove_unused_columns=False,
        # Its name in newer transformers is another one; the old one holds until 6. It keeps the random numbers, and so
        # the result.
        **({"gradient_checkpointing": True} if _recomputes(task) else {}),
    )
    return _Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=_Samples(),
        eval_dataset=_Samples() if evaluates else None,
        callbacks=[watch, marking_callback(schedule["keep_checkpoints"])],
    )


def _watcher(task: Task, report: Reporter) -> Any:
    """The engine's watcher; it adds speed to each entry of the training log."""
    tokens_per_step = task.settings["global_batch_size"] * task.settings["seq_length"]

    class _Watch(watcher_class()):  # type: ignore[misc]
        steps: int
        seconds: float

        def shown(self, entry: dict[str, Any]) -> dict[str, float]:
            if self.steps:
                entry["seconds"] = self.seconds
                entry["tokens_per_second"] = self.steps * tokens_per_step / max(self.seconds, 1e-9)
                self.steps, self.seconds = 0, 0.0
                return {name: entry[name] for name in ("loss", "tokens_per_second")}
            return dict(self.latest)

    tags = {"loss": "train/loss", "eval_loss": "validation/loss", "learning_rate": "train/learning_rate"}
    tags.update({"grad_norm": "train/grad_norm", "tokens_per_second": "train/tokens_per_second"})
    hint = _("Lower `--set pretrain.learning_rate=…`, or raise `--set pretrain.warmup_steps=…`.")
    return _Watch(report, task.tensorboard, tags, "pretrain", hint)


def _check_room(checkpoints: Path, parameters: int) -> None:
    """Raise ``OSError`` before hours of work, not after, when the disk has no room for one checkpoint and the model."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(checkpoints).free < parameters * (CHECKPOINT_PER_PARAMETER + MODEL_PER_PARAMETER):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoints))


@contextlib.contextmanager
def _small_gpu_is_named() -> Iterator[None]:
    """Say what to do when the GPU's memory does not suffice."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UcllmError(
            "pretrain.gpu-memory",
            _("The GPU's memory is too small."),
            str(error).splitlines()[0],
            _("Lower `--set pretrain.micro_batch_size=…`: the batch of a step stays as large, in more parts."),
        ) from error
