"""Step 2, second half: pretrain a GPT-2 on the tokenized corpus.

This module checks the corpus against the tokenizer and the settings, hands the training to an engine
(``pipeline/engines``), and writes what comes of it: the model folder, ``history.json``, the loss curve.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import samples, spm
from pipeline.config import padded_vocab_size, section, steps
from pipeline.corpus import SUFFIX
from pipeline.engines import megatron, megatron_compat, torch_engine
from pipeline.errors import Problem, UcllmError
from pipeline.figures import Level, Line, loss_curve
from pipeline.i18n import _
from pipeline.indexed_dataset import IndexedDataset
from pipeline.runs import StagePlan

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.stages import Sources

#: The engine that is another program: what it starts is known before it starts.
MEGATRON = "megatron-deepspeed"
#: Settings that change what is shown and kept, or where a run stops early, not the model.
SCHEDULE = (
    "eval_interval",
    "eval_iters",
    "save_interval",
    "keep_checkpoints",
    "log_interval",
    "hours",
    "activation_checkpointing",
)
#: Tokens of the sample in the metrics.
SAMPLE_TOKENS = 40
#: Windows whose loss is compared after the model was saved and loaded again, and by how much it may differ.
CHECKED_WINDOWS, CHECK_TOLERANCE = 4, 1e-4


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """Pretrain on the recipe's corpus, or ``--input PREFIX --tokenizer M.model --output DIR``.

    PREFIX names ``PREFIX.bin`` and ``PREFIX.idx``. Raises :class:`UcllmError` when it comes without its tokenizer.
    """
    home = sources.home(stage)
    prefix = sources.root / "corpus" / "corpus_text_document"
    tokenizer = sources.root / "tokenizer" / "tokenizer.model"
    if sources.inputs:
        if sources.tokenizer is None:
            raise UcllmError(
                "pretrain.no-tokenizer",
                _("A corpus of your own needs its tokenizer."),
                _("The size of the vocabulary is not in the corpus."),
                _("Add `--tokenizer MODEL`, the SentencePiece .model file that the corpus was made with."),
            )
        given = Path(sources.inputs[0]).absolute()
        prefix = given.with_suffix("") if given.suffix in (".bin", ".idx") else given
        if prefix == given and not given.name.endswith("_document"):
            prefix = given.with_name(given.name + SUFFIX)  # the prefix that `corpus --output` was given
    if sources.tokenizer is not None:
        tokenizer = sources.tokenizer.absolute()
    settings = {**section(config, "pretrain"), "steps": steps(config)}
    del settings["tokens"]
    run_only = {key: settings.pop(key) for key in SCHEDULE}
    values: dict[str, Any] = {"model": section(config, "model"), "pretrain": settings}
    launch = None
    if config.pretrain.engine == MEGATRON:
        if sources.machines is None:
            raise ValueError("engine megatron-deepspeed needs machines")
        places = _places(prefix, tokenizer, home, sources)
        launch = (megatron_compat if sources.machines.compat else megatron).launch(config, sources.machines, places)
        # How many GPUs share the work changes nothing; how the model is cut, and what is published, does.
        run_only["micro_batch_size"] = settings.pop("micro_batch_size")
        run_only["hosts"] = list(sources.machines.hosts)
        run_only["data_parallel"] = sources.machines.data_parallel(config.parallel)
        values.update({"parallel": section(config, "parallel"), "compat": sources.machines.compat})
    return StagePlan(
        stage,
        home,
        values,
        {
            "bin": prefix.with_name(prefix.name + ".bin"),
            "idx": prefix.with_name(prefix.name + ".idx"),
            "tokenizer": tokenizer,
        },
        {
            "model": sources.output.absolute() if sources.output else home / "model",
            "history": home / "history.json",
            "curve": home / "loss.svg",
        },
        run={**run_only, "wandb": section(config, "wandb"), "prompt": config.upload.prompt},
        launch=launch,
    )


def _places(prefix: Path, tokenizer: Path, home: Path, sources: Sources) -> megatron.Places:
    """The engine's files in the run directory. ``checkpoint`` leads to those of this configuration (:mod:`.runs`)."""
    machines = sources.machines
    host = machines.hosts[0] if machines else ""
    group = f"{'pretrain_' + home.parent.name}_{host}_{time.strftime('%Y.%m.%d_%H.%M.%S')}"
    return megatron.Places(
        corpus=prefix,
        tokenizer=tokenizer,
        checkpoints=home / "checkpoint",
        tensorboard=home / "tensorboard",
        files=home / "launch",
        code=sources.code,
        group=group[:128],  # "should be less than 128 characters": the published scripts
    )


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Train, and write the model folder, the history and the curve.

    Raises :class:`UcllmError` for a corpus that is damaged, too short, or made with another tokenizer, and for what the
    engine cannot do (:func:`pipeline.engines.torch_engine.train`).
    """
    settings = job.config["pretrain"]
    processor = spm.load(job.inputs["tokenizer"])
    dataset = IndexedDataset(job.inputs["bin"].with_suffix(""))
    training, held_out = samples.split(dataset, settings["validation_fraction"])
    _check_lengths(training, held_out, settings, job.inputs["bin"])
    statistics = _statistics(training, held_out, processor.get_piece_size(), job.inputs)
    if settings["engine"] == MEGATRON:
        return _by_program(job, report, statistics, len(training.tokens))

    task = torch_engine.Task(
        settings=settings,
        shape=job.config["model"],
        schedule=job.config["run"],
        vocab_size=padded_vocab_size(processor.get_piece_size()),
        special_ids=_special_ids(processor),
        training=training,
        held_out=held_out,
        checkpoints=job.checkpoints,
        tensorboard=job.home / "tensorboard",
    )
    trained = torch_engine.train(task, report)
    history = _history(trained.history)
    history.update(statistics)
    history["reload_check"] = _short_loss(trained.model, _checked(training, held_out, settings), settings)
    trained.model.save_pretrained(job.outputs["model"])
    job.outputs["history"].write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    job.outputs["curve"].write_text(_curve(history), encoding="utf-8")

    seconds = sum(each["seconds"] for each in history["train"])
    return {
        "steps": trained.steps,
        "stopped_by": trained.stopped_by,
        "loss_first": history["train"][0]["loss"],
        "loss_last": history["train"][-1]["loss"],
        "val_loss": history["validation"][-1]["loss"] if history["validation"] else None,
        "tokens_per_second": round(trained.steps * _tokens_per_step(settings) / max(seconds, 1e-9), 1),
        **statistics,
        "tokens_trained": trained.steps * _tokens_per_step(settings),
        "epochs": round(trained.steps * _tokens_per_step(settings) / len(training.tokens), 2),
        "precision": trained.precision,
        "parameters": sum(each.numel() for each in trained.model.parameters()),
        "sample": _sample(trained.model, processor, job.config["run"]["prompt"], settings),
        "versions": _versions(),
    }


def _by_program(job: Job, report: Reporter, statistics: dict[str, float | None], tokens: int) -> dict[str, Any]:
    """Train by Megatron-DeepSpeed; the model folder is its checkpoint, as it is."""
    from pipeline.engines import megatron_run

    settings = job.config["pretrain"]
    trained = megatron_run.train(job, report)
    heard = trained.heard
    history: dict[str, Any] = {
        "train": [entry for entry in heard.steps if "loss" in entry],
        "validation": heard.validations,
        **statistics,
    }
    if not history["train"]:
        raise UcllmError(
            "pretrain.nothing-logged",
            _("The training ended before it told a loss."),
            _("It logs every {interval} steps.").format(interval=job.config["run"]["log_interval"]),
            _("Lower `--set pretrain.log_interval=…`, or train more steps."),
        )
    megatron_run.link_checkpoint(trained.checkpoint, job.outputs["model"])
    job.outputs["history"].write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    job.outputs["curve"].write_text(_curve(history), encoding="utf-8")
    return {
        "steps": trained.step,
        "loss_first": history["train"][0]["loss"],
        "loss_last": history["train"][-1]["loss"],
        "val_loss": history["validation"][-1]["loss"] if history["validation"] else None,
        "tokens_per_second": round(history["train"][-1]["tokens_per_second"], 1),
        **statistics,
        "tokens_trained": trained.step * _tokens_per_step(settings),
        "epochs": round(trained.step * _tokens_per_step(settings) / tokens, 2),
        "stopped_by": heard.stopped_by or "steps",
        "versions": _versions(),
    }


def verify(job: Job) -> list[str]:
    """Load the model folder as a stranger would, and compare a loss with the one measured before it was saved."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = job.config["pretrain"]
    if settings["engine"] == MEGATRON:
        return []  # each file's end was looked at when its marker was written; `convert` reads every weight
    model = AutoModelForCausalLM.from_pretrained(job.outputs["model"], local_files_only=True).float().eval()
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        return [_("The saved weights are not numbers: {names}.").format(names=", ".join(broken[:5]))]
    history = json.loads(job.outputs["history"].read_text(encoding="utf-8"))
    dataset = IndexedDataset(job.inputs["bin"].with_suffix(""))
    training, held_out = samples.split(dataset, settings["validation_fraction"])
    loss, before = _short_loss(model, _checked(training, held_out, settings), settings), history["reload_check"]
    if not abs(loss - before) <= CHECK_TOLERANCE:  # also when it is NaN
        text = _("The saved model has loss {after} where the trained one had {before}.")
        return [text.format(after=f"{loss:.6f}", before=f"{before:.6f}")]
    return []


def _tokens_per_step(settings: dict[str, Any]) -> int:
    return int(settings["global_batch_size"]) * int(settings["seq_length"])


def _check_lengths(training: samples.Part, held_out: samples.Part, settings: dict[str, Any], path: Path) -> None:
    needed = settings["seq_length"] + 1
    problems = []
    parts = [(training, _("training"))]
    if settings["validation_fraction"] > 0:
        parts.append((held_out, _("validation")))
    for part, name in parts:
        if len(part.tokens) < needed:
            text = _("{path} is too short: its part for {name} has {count} tokens, and one sample takes {needed}.")
            what = text.format(path=path, name=name, count=len(part.tokens), needed=needed)
            hint = _(
                "Give more text, lower `--set pretrain.seq_length=…`, or change `--set pretrain.validation_fraction=…` "
                "(0 holds nothing out) or `--set corpus.lines_per_document=…`."
            )
            problems.append(Problem("corpus.too-short", what, hint=hint))
    if problems:
        raise UcllmError.of(problems)


def _statistics(
    training: samples.Part, held_out: samples.Part, vocab_size: int, inputs: dict[str, Path]
) -> dict[str, float | None]:
    """``unigram_entropy`` of the corpus and ``val_unigram`` (:func:`pipeline.samples.unigram_loss`), in nats.

    Raises :class:`UcllmError` when the corpus holds ids that the tokenizer has not.
    """
    seen, tail = samples.count(training.tokens, vocab_size), samples.count(held_out.tokens, vocab_size)
    largest = max(len(seen), len(tail)) - 1
    if largest >= vocab_size:
        raise UcllmError(
            "corpus.other-tokenizer",
            _("{path} was not made with this tokenizer.").format(path=inputs["bin"]),
            _("It holds id {largest}, and {tokenizer} has {count} pieces.").format(
                largest=largest, tokenizer=inputs["tokenizer"], count=vocab_size
            ),
            _("Make the corpus with it (`ucllm train corpus`), or name the other one with `--tokenizer MODEL`."),
        )
    unigram = samples.unigram_loss(seen, tail) if int(tail.sum()) else None
    return {"unigram_entropy": samples.entropy(seen + tail), "val_unigram": unigram}


def _special_ids(processor: Any) -> dict[str, int | None]:
    """The ids that the model's configuration names; a text ends at ``<EOD>``, else at ``</s>``."""
    end = spm.piece_id(processor, spm.EOD)
    return {
        "bos_token_id": spm.piece_id(processor, "<s>"),
        "eos_token_id": end if end is not None else spm.piece_id(processor, "</s>"),
        "pad_token_id": spm.piece_id(processor, "<pad>"),
    }


def _checked(training: samples.Part, held_out: samples.Part, settings: dict[str, Any]) -> Any:
    """The tokens of the comparison in :func:`verify`."""
    part = held_out if len(held_out.tokens) else training
    return part.tokens[: CHECKED_WINDOWS * settings["seq_length"] + 1]


def _short_loss(model: Any, tokens: Any, settings: dict[str, Any]) -> float:
    total, count = torch_engine.total_loss(model, tokens, settings["seq_length"])
    return total / count


def _history(logs: list[dict[str, Any]]) -> dict[str, Any]:
    """``train`` and ``validation``, a dictionary a logged step, without what the Trainer adds at the end of a run."""
    keys = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds")
    train = [{key: each[key] for key in keys if key in each} for each in logs if "loss" in each]
    validation = [{"step": each["step"], "loss": each["eval_loss"]} for each in logs if "eval_loss" in each]
    return {"train": train, "validation": validation}


def _curve(history: dict[str, Any]) -> str:
    lines = [Line(_("training"), [(each["step"], each["loss"]) for each in history["train"]])]
    if history["validation"]:
        points = [(each["step"], each["loss"]) for each in history["validation"]]
        lines.append(Line(_("validation"), points, dots=True))
    level = Level(_("word frequencies alone"), history["unigram_entropy"])
    return loss_curve(_("Pretraining"), _("step"), _("loss (nats per token)"), lines, [level])


def _sample(model: Any, processor: Any, prompt: str, settings: dict[str, Any]) -> str:
    """``prompt`` and what the model makes of it: drawn from its 40 likeliest tokens, the same draw every time."""
    import torch
    from transformers import set_seed

    ids = processor.encode(prompt) or [max(0, int(model.config.eos_token_id or 0))]
    room = min(SAMPLE_TOKENS, settings["seq_length"] // 2)
    inputs = torch.tensor([ids[-(settings["seq_length"] - room) :]], device=model.device)
    set_seed(settings["seed"])
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=room,
        do_sample=True,
        top_k=40,
        # Rows beyond the tokenizer's size are padding and stand for nothing.
        suppress_tokens=list(range(processor.get_piece_size(), model.config.vocab_size)) or None,
    )
    made = [each for each in output[0, inputs.shape[1] :].tolist() if each != model.config.eos_token_id]
    return str(processor.decode([*ids, *made]))


def _versions() -> dict[str, str]:
    import accelerate
    import numpy as np
    import torch
    import transformers

    libraries = {"torch": torch, "transformers": transformers, "accelerate": accelerate, "numpy": np}
    return {"python": platform.python_version(), **{name: each.__version__ for name, each in libraries.items()}}
