"""Fine-tuning by trl's SFTTrainer, on one device.

Tokens and labels are made by :mod:`pipeline.chat` and not by trl: its masks need a template with marks that other
programs cannot read, and change from version to version. The trainer gets ``input_ids`` and ``labels`` and leaves them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.base_model import BaseModel, describe_ids, load_folder, load_from_hub, write_folder
from pipeline.chat import IGNORED, Data, Example, chat_template, prepare, prompt_ids
from pipeline.engines import lora, packing, wandb_report
from pipeline.engines.torch_engine import CHECKPOINT_PER_PARAMETER
from pipeline.engines.watcher import watcher_class
from pipeline.errors import Problem, UcllmError
from pipeline.figures import Line, loss_curve
from pipeline.i18n import _
from pipeline.instructions import Conversation
from pipeline.precision import choose, use_one_gpu

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter

#: Taken for ``max_seq_length = 0`` where the model has no limit of its own.
NO_LIMIT_LENGTH = 2048
#: Checkpoints over a run, and how many of them are kept: a kill costs at most this part of the work.
SAVES = 10
KEPT = 2
#: Points of the training loss in history, log and TensorBoard.
LOGGED = 50
SAMPLE_TOKENS = 60


def problems(config: Config) -> list[Problem]:
    """What this engine cannot do of a configuration: it is one process on one device."""
    launcher = config.finetune.launcher
    if launcher == "none":
        return []
    what = _("finetune.launcher={launcher} starts several processes, and engine trl is one, on one device.")
    hint = _("Use `--set finetune.launcher=none`, or `--engine llm-jp-sft`.")
    return [Problem("config.contradiction", what.format(launcher=launcher), hint=hint)]


def finetune(job: Job, conversations: Sequence[Conversation], report: Reporter) -> dict[str, Any]:
    """Train and write the outputs; see the end of this function for the metrics.

    ``answer_loss`` and ``answer_loss_base`` are nats per answer token of the held-out conversations after and before
    (``None`` without any). Raises :class:`UcllmError` for a model or data that do not fit, for a loss that is not a
    number, and, before the model is loaded, for a package that an option needs and that is not there.
    """
    use_one_gpu()
    settings = job.config["finetune"]
    adapters = lora.configuration(settings.get("lora_rank", 0))
    wandb = job.config.get("run", {}).get("wandb", {})
    reporting = wandb_report.report_to(wandb, job.home, "finetune")
    base = starting_model(job, report)
    length = sequence_length(settings["max_seq_length"], base)
    data = prepare(conversations, base.tokenizer, length, settings["validation_fraction"], report)
    precision, reason = choose("auto")
    report.note(reason)

    import trl
    from transformers import set_seed

    set_seed(settings["seed"])
    describe_ids(base.model, base.tokenizer)
    rows = packing.dataset(data.train)
    alone, packed = packing.collators(base.model.config.pad_token_id)
    if settings.get("packing", False):
        rows = packing.pack(rows, length)
        text = _("{count} conversations are packed into {rows} rows of at most {length} tokens.")
        report.note(text.format(count=len(data.train), rows=len(rows), length=length))
    arguments = _arguments(job, settings, precision, len(rows), reporting)
    epoch = steps_per_epoch(settings, len(rows))
    watch = _watcher(report, epoch, job.home / "tensorboard")
    trainer = trl.SFTTrainer(
        model=base.model,
        args=arguments,
        train_dataset=rows,
        data_collator=packed if "seq_lengths" in rows.column_names else alone,
        processing_class=base.tokenizer,
        peft_config=adapters,
        callbacks=[watch, checkpoints.marking_callback(KEPT)],
    )
    batch = settings["micro_batch_size"]

    def held_out_loss() -> float | None:
        return answer_loss(trainer.model, data.held_out, alone, batch)

    if "seq_lengths" in rows.column_names:
        packing.check_apart(functools.partial(answer_losses, trainer.model), rows, alone, packed)
    before = held_out_loss()
    watch.held_out_loss = held_out_loss
    start = checkpoints.starting_point(job.checkpoints, report)
    with wandb_report.refusals_are_named(reporting != "none"), _explained(job.checkpoints, base):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    # Accelerate wraps the forward pass in autocast; what is measured and saved is the plain fp32 model.
    base.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    if adapters is not None:
        base.model = base.model.merge_and_unload()
    if arguments.gradient_checkpointing:
        base.model.gradient_checkpointing_disable()
    base.model.config.use_cache = True  # training switches it off
    after = answer_loss(base.model, data.held_out, alone, batch)

    write_folder(base, job.outputs["model"])
    trained = watch.steps * batch * settings["gradient_accumulation_steps"]
    mean_length = sum(len(each.input_ids) for each in data.train) / len(rows)
    return conclude(
        job,
        base,
        data,
        trainer.state.log_history,
        (before, after),
        rows=len(rows),
        steps=arguments.max_steps,
        seconds=watch.seconds,
        tokens=trained * mean_length,
        precision=precision,
    )


def conclude(
    job: Job,
    tuned: BaseModel,
    data: Data,
    log: Sequence[dict[str, Any]],
    losses: tuple[float | None, float | None],
    *,
    rows: int,
    steps: int,
    seconds: float,
    tokens: float,
    precision: str,
) -> dict[str, Any]:
    """Try the tuned model, write history and curve, and return the metrics, of every engine the same.

    ``log`` is as the Trainer's ``log_history``; ``losses`` are the held-out ones before and after. ``seconds`` and
    ``tokens`` are of this process: a run that was continued did the rest before.
    """
    settings = job.config["finetune"]
    sample = try_questions(tuned, data.questions, settings["seed"])
    history = history_of(log, losses, steps, sample["question"])
    job.outputs["history"].write_text(json.dumps(history, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    job.outputs["curve"].write_text(curve_of(history), encoding="utf-8")
    before, after = losses
    return {
        "answer_loss_base": before,
        "answer_loss": after,
        "conversations": len(data.train) + len(data.held_out),
        "held_out": len(data.held_out),
        "cut": data.cut,
        "dropped": data.dropped,
        "rows": rows,
        "epochs": settings["epochs"],
        "steps": steps,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "precision": precision,
        "base_model": {"name": job.config["hub_model"], "commit": tuned.commit} if tuned.commit else {},
        "sample": sample,
        "versions": versions_of(["peft"] if settings.get("lora_rank") else []),
    }


def starting_model(job: Job, report: Reporter) -> BaseModel:
    """The model to start from, its tokenizer with the chat template of our form."""
    hub_model = job.config.get("hub_model")
    if hub_model:
        base = load_from_hub(hub_model, report.note)
        report.note(_("Fetched {name}, commit {commit}.").format(name=hub_model, commit=base.commit[:12]))
    else:
        base = load_folder(job.inputs["model"])
    if base.tokenizer.chat_template:
        report.note(_("The model's own chat template is replaced by `### Human:` / `### Assistant:`."))
    base.tokenizer.chat_template = chat_template(base.tokenizer)
    return base


@contextlib.contextmanager
def _explained(root: Path, base: BaseModel) -> Iterator[None]:
    """Give the failures of memory and disk, which libraries report in words of their own, their true names."""
    import torch

    needed = CHECKPOINT_PER_PARAMETER * sum(each.numel() for each in base.model.parameters() if each.requires_grad)
    try:
        with checkpoints.full_disk_is_named(root, needed):
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise UcllmError(
            "finetune.gpu-memory",
            _("The GPU's memory is too small."),
            str(error).splitlines()[0],
            _(
                "Halve `--set finetune.micro_batch_size=…` and double `--set finetune.gradient_accumulation_steps=…`: "
                "the result stays the same."
            ),
        ) from error


def sequence_length(wanted: int, base: BaseModel) -> int:
    """Tokens a conversation may have. Raises :class:`UcllmError` when that is more than the model can read."""
    limit = base.positions
    if limit is not None and wanted > limit:
        raise UcllmError(
            "finetune.too-long",
            _("finetune.max_seq_length {length} is longer than the model: it reads {limit} tokens.").format(
                length=wanted, limit=limit
            ),
            "",
            _("Use `--set finetune.max_seq_length=0` for the model's own length."),
        )
    return wanted or limit or NO_LIMIT_LENGTH


def steps_per_epoch(settings: dict[str, Any], rows: int) -> int:
    """Optimizer steps that see every row once, the last ones with what remains."""
    batch, accumulation = int(settings["micro_batch_size"]), int(settings["gradient_accumulation_steps"])
    return math.ceil(math.ceil(rows / batch) / accumulation)


def _arguments(job: Job, settings: dict[str, Any], precision: str, rows: int, reporting: str) -> Any:
    import torch
    import trl

    steps = max(1, math.ceil(steps_per_epoch(settings, rows) * settings["epochs"]))
    return trl.SFTConfig(
        output_dir=str(job.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=settings["micro_batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        # trl's own default saves memory for time.
        gradient_checkpointing=settings.get("gradient_checkpointing", False),
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * settings["warmup_ratio"]),
        seed=settings["seed"],
        data_seed=settings["seed"],
        # trl takes bf16 unless told otherwise.
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        logging_steps=max(1, steps // LOGGED),
        save_steps=max(1, steps // SAVES),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        # The Trainer would hide a loss that is not a number.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=reporting,
        run_name=wandb_report.run_name(job.home, "finetune"),
    )


def _watcher(report: Reporter, epoch: int, tensorboard: Path) -> Any:
    """The engine's watcher; it adds the held-out loss of each epoch, but the last, to the history.

    ``epoch`` is its length in steps. Set ``held_out_loss`` before training.
    """

    class _Watch(watcher_class()):  # type: ignore[misc]  # transformers is not analysed: pyproject.toml
        held_out_loss: Any = None

        def step_ended(self, state: Any) -> None:
            # Before the step is saved, so that a run that is continued from it knows it.
            if state.global_step % epoch or state.global_step >= state.max_steps:
                return
            loss = self.held_out_loss()
            if loss is not None:
                state.log_history.append({"step": state.global_step, "answer_loss": loss})
                self.write(state.log_history[-1])
            self.since = time.perf_counter()

    tags = {"loss": "train/loss", "answer_loss": "held-out/loss", "learning_rate": "train/learning_rate"}
    return _Watch(report, tensorboard, tags, "finetune", _("Lower `--set finetune.learning_rate=…`."))


def answer_loss(model: Any, examples: Sequence[Example], collate: Any, batch: int) -> float | None:
    """Mean nats per answer token over ``examples``; ``None`` when there are none. Leaves the mode as it was.

    Not ``trainer.evaluate``: that averages over batches, whatever number of answer tokens each holds, and draws random
    numbers.
    """
    import torch

    if not examples:
        return None
    was_training = model.training
    starts = range(0, len(examples), batch)
    parts = ([vars(each) for each in examples[start : start + batch]] for start in starts)
    losses = torch.cat([answer_losses(model, collate(rows)) for rows in parts])
    model.train(was_training)
    return float(losses.double().mean())


def answer_losses(model: Any, batch: dict[str, Any]) -> Any:
    """The loss of each answer token of ``batch`` in nats, float32 [tokens]. Leaves the model in evaluation mode."""
    import torch
    from torch.nn.functional import cross_entropy

    model.eval()
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    counted = labels != IGNORED
    with torch.no_grad():
        # As in training; with a cache transformers does not look for packed conversations.
        logits = model(**inputs, use_cache=False).logits[:, :-1][counted].float()
    return cross_entropy(logits, labels[counted], reduction="none")


def try_questions(base: BaseModel, questions: Sequence[str], seed: int) -> dict[str, str]:
    """The first of ``questions`` that gets an answer, and that ``answer``: drawn at random, but always the same.

    Drawn, because the likeliest words of a small model repeat. Without any answer, the first question and an empty one.
    """
    # Another draw for each: one that ends at once for one question does so for most.
    for number, question in enumerate(questions):
        answer = _answer(base, question, seed + number)
        if answer:
            return {"question": question, "answer": answer}
    return {"question": questions[0], "answer": ""}


def _answer(base: BaseModel, question: str, seed: int) -> str:
    import torch

    ids = prompt_ids(question, base.tokenizer)
    room = min(SAMPLE_TOKENS, (base.positions or len(ids) + SAMPLE_TOKENS) - len(ids))
    if room < 1:
        return ""
    inputs = torch.tensor([ids], device=base.model.device)
    torch.manual_seed(seed)
    with torch.no_grad():
        output = base.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=room,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
        )
    return str(base.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)).strip()


def history_of(
    log: Sequence[dict[str, Any]], losses: tuple[float | None, float | None], steps: int, question: str
) -> dict[str, Any]:
    """``train`` and ``held_out``, a dictionary a logged step, and the ``question`` of the sample."""
    keys = ("step", "loss", "learning_rate", "grad_norm")
    train = [{key: each[key] for key in keys if key in each} for each in log if "loss" in each]
    held_out = [{"step": each["step"], "loss": each["answer_loss"]} for each in log if "answer_loss" in each]
    if losses[0] is not None:
        held_out = [{"step": 0, "loss": losses[0]}, *held_out, {"step": steps, "loss": losses[1]}]
    return {"train": train, "held_out": held_out, "question": question}


def curve_of(history: dict[str, Any]) -> str:
    """An SVG of what :func:`history_of` returns."""
    lines = [Line(_("training"), [(each["step"], each["loss"]) for each in history["train"]])]
    if history["held_out"]:
        points = [(each["step"], each["loss"]) for each in history["held_out"]]
        lines.append(Line(_("held-out answers"), points, dots=True))
    return loss_curve(_("Fine-tuning"), _("step"), _("loss (nats per answer token)"), lines)


def versions_of(more: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of what trains; ``more`` are further packages."""
    names = ("torch", "transformers", "trl", "accelerate", "datasets", *more)
    return {"python": platform.python_version(), **{name: importlib.import_module(name).__version__ for name in names}}
