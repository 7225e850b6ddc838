"""Engine ``llm-jp-sft`` at work: write the data it reads, start the launch, hear its log, make the model folder.

What is measured and written is what engine ``trl`` measures and writes, by the same functions, in this process: before
the launch on the CPU only, so that the GPUs are all its own, and after its end on a GPU where the model fits.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.base_model import BaseModel, describe_ids, load_folder, write_folder
from pipeline.chat import Example, encode, prepare
from pipeline.engines import llm_jp_sft, program, trl_engine
from pipeline.engines import llm_jp_sft_data as texts_of
from pipeline.engines.llm_jp_sft import CHECKPOINTS
from pipeline.engines.llm_jp_sft_start import STOPPED
from pipeline.engines.watcher import tensorboard_writer
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.instructions import Conversation
from pipeline.model_folder import hide_paths, write_json

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.events import Reporter

#: What the Trainer prints for a log entry: a Python dictionary of numbers.
_ENTRY = re.compile(r"\{'(?:loss|train_runtime)': .*\}")
_NUMBER = re.compile(r"'(\w+)': (-?[\d.]+(?:e[+-]?\d+)?|-?inf|nan)")
_TAGS = {"loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm"}


@dataclass
class Heard(program.Heard):
    """What the log said: entries of steps as the Trainer's ``log_history`` has them."""

    log: list[dict[str, Any]] = field(default_factory=list)
    #: Several nodes print the same entries.
    seen: set[str] = field(default_factory=set)
    #: The step it was continued from.
    start: int = 0
    diverged: bool = False

    @property
    def step(self) -> int:
        """The last step that was heard of."""
        return int(self.log[-1]["step"]) if self.log else self.start


def finetune(job: Job, conversations: Sequence[Conversation], report: Reporter) -> dict[str, Any]:
    """Train and write the outputs; the metrics are those of :func:`pipeline.engines.trl_engine.finetune`.

    Raises :class:`UcllmError` for a model or data that do not fit, before anything starts, when llm-jp-sft fails, when
    the loss is not a number, and when it was stopped.
    """
    settings, launch = job.config["finetune"], job.config["run"]["launch"]
    as_it_is = bool(job.config["compat"]) and "data" in job.inputs
    base = trl_engine.starting_model(job, report)
    _refuse_model(base, settings)
    length = _length(launch["argv"], base)
    fraction = 0.0 if as_it_is else settings["validation_fraction"]
    data = prepare(conversations, base.tokenizer, length, fraction, report)
    _refuse_longer(data.cut + data.dropped, length, launch["argv"], base)
    rows = _write_data(job, conversations, base, data.train, length, report)
    base.model = None  # the memory is the training's now
    steps = steps_of(settings, rows, job.config["processes"])
    if "hub_model" in job.config and not job.config["compat"]:
        link = job.home / "base"
        link.unlink(missing_ok=True)
        link.symlink_to(base.folder)
    if job.config["compat"] and settings["launcher"] != "deepspeed":
        report.note(
            _("Warning: the published launch keeps the weights in bf16, where the updates of a small rate are lost.")
        )
    heard = _train(job, steps, report)

    tuned, before, after = _measured(job, base, data.held_out)
    write_folder(tuned, job.outputs["model"])
    _for_older_transformers(job.outputs["model"], tuned.tokenizer.chat_template)
    hide_paths(job.outputs["model"], job.outputs["model"])
    tokens = sum(len(each.input_ids) for each in data.train) * settings["epochs"] * (1 - heard.start / max(steps, 1))
    return trl_engine.conclude(
        job,
        tuned,
        data,
        heard.log,
        (before, after),
        rows=rows,
        steps=steps,
        seconds=heard.seconds,
        tokens=tokens,
        precision="bf16",
    )


# --- before ----------------------------------------------------------------------------------------------------------


def _refuse_model(base: BaseModel, settings: Mapping[str, Any]) -> None:
    """``train.py`` puts LoRA beside the layers of a GPT-2, by name (``peft_target_model``), and transposed."""
    if settings["lora_rank"] and not any(name.endswith("c_attn") for name, _module in base.model.named_modules()):
        raise UcllmError(
            "finetune.lora",
            _("llm-jp-sft's LoRA is for models of GPT-2's kind, and this is a {kind}.").format(
                kind=base.model.config.model_type
            ),
            hint=_("Use `--engine trl`, or `--set finetune.lora_rank=0`."),
        )


def _word(argv: Sequence[str], flag: str) -> str:
    """What follows ``flag`` in the launch; empty without it."""
    return argv[argv.index(flag) + 1] if flag in argv else ""


def _length(argv: Sequence[str], base: BaseModel) -> int:
    """Tokens of a conversation that ``train.py`` reads, and the model can."""
    wanted = _word(argv, "--max_seq_length")
    if wanted:
        return trl_engine.sequence_length(int(wanted), base)
    return min(llm_jp_sft.MAX_SEQ_LENGTH, base.positions or llm_jp_sft.MAX_SEQ_LENGTH)


def _refuse_longer(cut: int, length: int, argv: Sequence[str], base: BaseModel) -> None:
    """Unless it is told a length, ``train.py`` hands more tokens to a small model than that can read."""
    if cut and not _word(argv, "--max_seq_length") and (base.positions or math.inf) < llm_jp_sft.MAX_SEQ_LENGTH:
        what = _("{count} conversations are longer than the model: it reads {limit} tokens.")
        raise UcllmError(
            "finetune.too-long",
            what.format(count=cut, limit=length),
            _("llm-jp-sft cuts conversations only where it is told to."),
            _("Use `--set finetune.max_seq_length={limit}`.").format(limit=length),
        )


def _write_data(
    job: Job,
    conversations: Sequence[Conversation],
    base: BaseModel,
    train: Sequence[Example],
    length: int,
    report: Reporter,
) -> int:
    """Write the file that the launch names, or look at it where it is the user's own; how many rows it has."""
    argv = job.config["run"]["launch"]["argv"]
    tokenizer = _as_train_py_loads(base.folder, fast=_word(argv, "--use_fast") != "False")
    if job.config["compat"] and "data" in job.inputs:
        texts = texts_of.read_as_it_is(job.inputs["data"])
        deaf = [not each.learned for each in texts_of.learned(texts, tokenizer, length)]
        if all(deaf):
            texts_of.refuse_misread(texts, deaf)
        report.note(_("The published launch reads the data as it is: nothing is held out."))
        if any(deaf):
            text = _("Warning: llm-jp-sft does not find the answers in {count} of {total} conversations.")
            report.note(text.format(count=sum(deaf), total=len(texts)))
        return len(texts)
    kept = [each for each in conversations if encode(each, base.tokenizer, length).learned][: len(train)]
    texts = texts_of.render(kept, base.tokenizer)
    seen = texts_of.learned(texts, tokenizer, length)
    bad = [texts_of.misread(ours, theirs, tokenizer.eos_token_id) for ours, theirs in zip(train, seen)]
    texts_of.refuse_misread(texts, bad)
    texts_of.write(Path(_word(argv, "--data_files")), texts)
    return len(texts)


def _as_train_py_loads(folder: Path, fast: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=fast, additional_special_tokens=None, local_files_only=True)


def steps_of(settings: Mapping[str, Any], rows: int, processes: int) -> int:
    """All optimizer steps, as the Trainer counts them: what remains of an epoch behind its last whole step is one more
    batch of the next (4.37: ``num_update_steps_per_epoch``)."""
    batches = math.ceil(rows / (int(settings["micro_batch_size"]) * processes))
    per_epoch = max(1, batches // int(settings["gradient_accumulation_steps"]))
    return math.ceil(float(settings["epochs"]) * per_epoch)


# --- the training ----------------------------------------------------------------------------------------------------


def _train(job: Job, steps: int, report: Reporter) -> Heard:
    """Start the launch and wait for its end; ``<home>/checkpoint`` then holds what it saved."""
    launch = job.config["run"]["launch"]
    folder = program.write_files(job.home / "launch", launch["files"])
    program.point_to_checkpoints(job.home / "checkpoint", job.checkpoints)
    heard = _remembered(job, report)
    writers: list[Any] = []  # opened with the first entry: it starts a thread, and what is launched is forked before

    def hear(line: str) -> bool:
        before = entries = len(heard.log)
        hear_line(line, heard, job.config, steps)
        if len(heard.log) > entries and not writers:
            writers.append(tensorboard_writer(job.home / "tensorboard", report))
            entries = 0
        for entry in heard.log[entries:]:
            _draw(writers[0], entry)
        if len(heard.log) > before:
            report.progress(heard.step, max(steps, heard.step), "steps", loss=heard.log[-1]["loss"])
        # Ours ends by itself, without a checkpoint of what is no number.
        return heard.diverged and bool(job.config["compat"])

    try:
        code, asked = program.run(launch, folder, hear, report)
    finally:
        for writer in filter(None, writers):
            writer.close()
    _judge(code, asked, job, heard)
    return heard


def _remembered(job: Job, report: Reporter) -> Heard:
    """What earlier starts did up to the checkpoint where this one continues; what they left of a result goes."""
    heard = Heard()
    if job.config["compat"]:
        if any(job.checkpoints.iterdir()):
            report.note(_("The published launch cannot continue: the training starts anew."))
        shutil.rmtree(job.checkpoints)
        job.checkpoints.mkdir()
        return heard
    for path in job.checkpoints.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name.startswith("tmp-"):  # a checkpoint in the making
            shutil.rmtree(path)
    start = checkpoints.starting_point(job.checkpoints, report, CHECKPOINTS)
    if start is not None:
        heard.start = CHECKPOINTS.step(start)
        state = json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))
        heard.log = [entry for entry in state["log_history"] if "loss" in entry]
    return heard


def hear_line(line: str, heard: Heard, config: Mapping[str, Any], steps: int) -> None:
    """Take in a line of the log; ``steps`` are those of the whole training."""
    heard.take(line)
    if STOPPED in line:
        heard.stopped_by = "signal"
    found = _ENTRY.search(line)
    if found is None or found.group() in heard.seen:
        return
    heard.seen.add(found.group())
    entry: dict[str, Any] = {name: float(value) for name, value in _NUMBER.findall(found.group())}
    if "train_runtime" in entry:
        heard.seconds = entry["train_runtime"]
        return
    if config["compat"]:  # it logs every so many steps, and says only the part of an epoch
        entry["step"] = max(heard.step + 1, round(entry["epoch"] * steps / config["finetune"]["epochs"]))
    else:
        entry["step"] = heard.step + 1
    heard.log.append(entry)
    heard.diverged = not math.isfinite(entry["loss"])


def _draw(writer: Any, entry: Mapping[str, Any]) -> None:
    for key, tag in _TAGS.items():
        if writer is not None and key in entry:
            writer.add_scalar(tag, entry[key], entry["step"])


def _judge(code: int, asked: bool, job: Job, heard: Heard) -> None:
    """Raise :class:`UcllmError` unless the training ended as it should, with a model."""
    if heard.diverged:
        raise UcllmError(
            "finetune.diverged",
            _("The loss is not a number at step {step}.").format(step=heard.step),
            _("The training diverged; no checkpoint holds what came of it."),
            _("Lower `--set finetune.learning_rate=…`."),
        )
    made = any((job.checkpoints / name).is_file() for name in ("config.json", "adapter_config.json"))
    if code == 0 and made:
        return
    if heard.stopped_by or asked:
        raise program.stopped("finetune", checkpoints.newest_complete(job.checkpoints, CHECKPOINTS))
    if "OutOfMemoryError" in heard.why:
        hint = _(
            "Halve `--set finetune.micro_batch_size=…` and double `--set finetune.gradient_accumulation_steps=…`: "
            "the result stays the same."
        )
        raise UcllmError("finetune.gpu-memory", _("The GPU's memory is too small."), heard.why, hint)
    what = _("llm-jp-sft ended with exit code {code}.").format(code=code)
    if code == 0:
        what = _("llm-jp-sft ended without a model.")
    hint = _("Read {log}; `ucllm explain {log}` knows the usual causes.").format(log=job.home / "log.txt")
    raise UcllmError("finetune.engine-failed", what, heard.why, hint)


# --- after -----------------------------------------------------------------------------------------------------------


def _measured(job: Job, base: BaseModel, held_out: Sequence[Example]) -> tuple[BaseModel, float | None, float | None]:
    """The model that came of it, in fp32 with the tokenizer of ``base``; the held-out loss before and after."""
    batch = job.config["finetune"]["micro_batch_size"]
    model = _loaded(base.folder)
    before = trl_engine.answer_loss(model, held_out, _collator(base.tokenizer), batch) if held_out else None
    if (job.checkpoints / "adapter_config.json").is_file():
        # By name: not every environment that the checks run in has it.
        model = (
            importlib.import_module("peft").PeftModel.from_pretrained(model, str(job.checkpoints)).merge_and_unload()
        )
    else:
        del model  # one model in memory at a time
        model = _loaded(job.checkpoints)
    describe_ids(model, base.tokenizer)
    model.config.use_cache = True  # training switches it off
    after = trl_engine.answer_loss(model, held_out, _collator(base.tokenizer), batch) if held_out else None
    return BaseModel(base.folder, model.eval(), base.tokenizer, base.commit), before, after


def _loaded(folder: Path) -> Any:
    """The model in ``folder``, in fp32, on the first GPU if it leaves half of that free."""
    import torch

    model = load_folder(folder).model
    size = sum(each.numel() * each.element_size() for each in model.parameters())
    if torch.cuda.is_available() and 2 * size < torch.cuda.mem_get_info()[0]:
        model = model.to("cuda")
    return model


def _collator(tokenizer: Any) -> Any:
    """What makes a batch for the held-out loss; trl's own is another in every version."""
    from transformers import DataCollatorForSeq2Seq

    collate = DataCollatorForSeq2Seq(tokenizer)
    return lambda rows: collate([{key: row[key] for key in ("input_ids", "labels")} for row in rows])


def _for_older_transformers(folder: Path, template: str) -> None:
    """transformers before 4.43 does not look for ``chat_template.jinja``, and those of the guide's time are such."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "chat_template": template})
