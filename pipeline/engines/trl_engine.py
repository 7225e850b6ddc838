"""Fine-tuning by trl's SFTTrainer, on one device.

Tokens and labels are made by :mod:`pipeline.chat` and not by trl: its masks need a template with marks that other
programs cannot read, and change from version to version. The trainer gets ``input_ids`` and ``labels`` and leaves them.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.base_model import BaseModel, describe_ids, load_folder, load_from_hub, write_folder
from pipeline.chat import IGNORED, Example, chat_template, prepare, prompt_ids
from pipeline.engines.torch_engine import CHECKPOINT_PER_PARAMETER
from pipeline.engines.watcher import watcher_class
from pipeline.errors import UcllmError
from pipeline.figures import Line, loss_curve
from pipeline.i18n import _
from pipeline.instructions import Conversation
from pipeline.precision import choose, use_one_gpu

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.child import Job
    from pipeline.events import Reporter

#: Taken for ``max_seq_length = 0`` where the model has no limit of its own.
NO_LIMIT_LENGTH = 2048
#: Checkpoints over a run, and how many of them are kept: a kill costs at most this part of the work.
SAVES = 10
KEPT = 2
#: Points of the training loss in history, log and TensorBoard.
LOGGED = 50
SAMPLE_TOKENS = 60


def finetune(job: Job, conversations: Sequence[Conversation], report: Reporter) -> dict[str, Any]:
    """Train and write the outputs; see the end of this function for the metrics.

    ``answer_loss`` and ``answer_loss_base`` are nats per answer token of the held-out conversations after and before
    (``None`` without any). Raises :class:`UcllmError` for a model or data that do not fit, and for a loss that is not a
    number.
    """
    use_one_gpu()
    settings = job.config["finetune"]
    base = _base(job, report)
    length = sequence_length(settings["max_seq_length"], base)
    data = prepare(conversations, base.tokenizer, length, settings["validation_fraction"], report)
    precision, reason = choose("auto")
    report.note(reason)

    import trl
    from transformers import set_seed

    set_seed(settings["seed"])
    describe_ids(base.model, base.tokenizer)
    arguments = _arguments(job, settings, precision, len(data.train))
    epoch = steps_per_epoch(settings, len(data.train))
    watch = _watcher(report, epoch, job.home / "tensorboard")
    trainer = trl.SFTTrainer(
        model=base.model,
        args=arguments,
        train_dataset=_dataset(data.train),
        processing_class=base.tokenizer,
        callbacks=[watch, checkpoints.marking_callback(KEPT)],
    )
    batch = settings["micro_batch_size"]

    def held_out_loss() -> float | None:
        return answer_loss(trainer.model, data.held_out, trainer.data_collator, batch)

    before = held_out_loss()
    watch.held_out_loss = held_out_loss
    start = checkpoints.starting_point(job.checkpoints, report)
    with _explained(job.checkpoints, base):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    # Accelerate wraps the forward pass in autocast; what is measured and saved is the plain fp32 model.
    base.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    base.model.config.use_cache = True  # training switches it off
    after = answer_loss(base.model, data.held_out, trainer.data_collator, batch)

    write_folder(base, job.outputs["model"])
    sample = _sample(base, data.questions, settings["seed"])
    history = _history(trainer.state.log_history, (before, after), arguments.max_steps, sample["question"])
    job.outputs["history"].write_text(json.dumps(history, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    job.outputs["curve"].write_text(_curve(history), encoding="utf-8")
    examples = watch.steps * batch * settings["gradient_accumulation_steps"]
    mean_length = sum(len(each.input_ids) for each in data.train) / len(data.train)
    return {
        "answer_loss_base": before,
        "answer_loss": after,
        "conversations": len(data.train) + len(data.held_out),
        "held_out": len(data.held_out),
        "cut": data.cut,
        "dropped": data.dropped,
        "epochs": settings["epochs"],
        "steps": arguments.max_steps,
        "seconds": round(watch.seconds, 2),
        # Of this process: a run that was continued did the rest before.
        "tokens_per_second": round(examples * mean_length / max(watch.seconds, 1e-9), 1),
        "precision": precision,
        "base_model": {"name": job.config["hub_model"], "commit": base.commit} if base.commit else {},
        "sample": sample,
        "versions": _versions(),
    }


def _base(job: Job, report: Reporter) -> BaseModel:
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

    needed = CHECKPOINT_PER_PARAMETER * sum(each.numel() for each in base.model.parameters())
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


def _dataset(examples: Sequence[Example]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({key: [getattr(each, key) for each in examples] for key in ("input_ids", "labels")})


def steps_per_epoch(settings: dict[str, Any], examples: int) -> int:
    """Optimizer steps that see every example once, the last ones with what remains."""
    batch, accumulation = int(settings["micro_batch_size"]), int(settings["gradient_accumulation_steps"])
    return math.ceil(math.ceil(examples / batch) / accumulation)


def _arguments(job: Job, settings: dict[str, Any], precision: str, examples: int) -> Any:
    import torch
    import trl

    steps = max(1, math.ceil(steps_per_epoch(settings, examples) * settings["epochs"]))
    return trl.SFTConfig(
        output_dir=str(job.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=settings["micro_batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        # trl's own default saves memory for time.
        gradient_checkpointing=False,
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
        report_to="none",
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
    from torch.nn.functional import cross_entropy

    if not examples:
        return None
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(examples), batch):
        rows = [{"input_ids": each.input_ids, "labels": each.labels} for each in examples[start : start + batch]]
        inputs = {key: value.to(model.device) for key, value in collate(rows).items()}
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1].float()
        total += cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    model.train(was_training)
    return total / count


def _sample(base: BaseModel, questions: Sequence[str], seed: int) -> dict[str, str]:
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


def _history(
    log: Sequence[dict[str, Any]], losses: tuple[float | None, float | None], steps: int, question: str
) -> dict[str, Any]:
    """``train`` and ``held_out``, a dictionary a logged step, and the ``question`` of the sample."""
    keys = ("step", "loss", "learning_rate", "grad_norm")
    train = [{key: each[key] for key in keys if key in each} for each in log if "loss" in each]
    held_out = [{"step": each["step"], "loss": each["answer_loss"]} for each in log if "answer_loss" in each]
    if losses[0] is not None:
        held_out = [{"step": 0, "loss": losses[0]}, *held_out, {"step": steps, "loss": losses[1]}]
    return {"train": train, "held_out": held_out, "question": question}


def _curve(history: dict[str, Any]) -> str:
    lines = [Line(_("training"), [(each["step"], each["loss"]) for each in history["train"]])]
    if history["held_out"]:
        points = [(each["step"], each["loss"]) for each in history["held_out"]]
        lines.append(Line(_("held-out answers"), points, dots=True))
    return loss_curve(_("Fine-tuning"), _("step"), _("loss (nats per answer token)"), lines)


def _versions() -> dict[str, str]:
    import accelerate
    import datasets
    import torch
    import transformers
    import trl

    libraries = {
        "torch": torch, "transformers": transformers, "trl": trl, "accelerate": accelerate, "datasets": datasets,
    }  # fmt: skip
    return {"python": platform.python_version(), **{name: each.__version__ for name, each in libraries.items()}}
