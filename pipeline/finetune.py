"""Step 4: teach a model to answer, on instruction data, with the engine that ``finetune.engine`` names.

What every engine shares is here: where model and data come from, what the data says, and the look at the result.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base_model import on_hub
from pipeline.config import section
from pipeline.engines import llm_jp_sft
from pipeline.errors import UcllmError
from pipeline.generate import load, sample
from pipeline.i18n import _
from pipeline.instructions import Instructions, corpus_text, from_corpus, read_instructions
from pipeline.runs import StagePlan
from pipeline.texts import chosen, excerpt_rules, reading_rules

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.launch import Machines
    from pipeline.stages import Sources

#: ``finetune.engine`` to the module with ``finetune(job, instructions, report) -> metrics``.
LLM_JP_SFT = "llm-jp-sft"
ENGINES = {"trl": "pipeline.engines.trl_engine", LLM_JP_SFT: "pipeline.engines.llm_jp_sft_run"}
FROM_CORPUS = "corpus"
#: A conversation whose rendering shows every part of the form.
_FORM = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """Fine-tune the recipe's own model, or ``--input MODEL_DIR|HUB_NAME --data F --output DIR``.

    The one look at the disk is whether ``--input`` is there: without it a name may be the Hub's.
    """
    home = sources.home(stage)
    settings = section(config, "finetune")
    values: dict[str, Any] = {"finetune": settings}
    inputs: dict[str, Path] = {}
    if sources.inputs and on_hub(sources.inputs[0]):
        values["hub_model"] = sources.inputs[0]
    elif sources.inputs:
        inputs["model"] = Path(sources.inputs[0]).expanduser().absolute()
    else:
        inputs["model"] = sources.root / "convert" / "model"
    data = settings.pop("data")
    settings["data"] = FROM_CORPUS if data == FROM_CORPUS else "file"  # the file itself is an input
    if data in sources.datasets:
        inputs["data"] = sources.datasets[data]
    elif data != FROM_CORPUS:
        inputs["data"] = Path(data).expanduser().absolute()
    elif sources.inputs:
        raise UcllmError(
            "finetune.no-data",
            _("A model of your own needs instruction data of your own."),
            _("The recipe's is made from the text that its own model was trained on."),
            _("Add `--data FILE`, a JSONL file."),
        )
    else:
        paths = chosen(config, dataclasses.replace(sources, inputs=()))
        values["reading"] = {**reading_rules(config, paths), **excerpt_rules(config, paths)}
        inputs.update({f"text {number}": path for number, path in enumerate(paths, 1)})
    output = sources.output.absolute() if sources.output else home / "model"
    outputs = {"model": output, "history": home / "history.json", "curve": home / "loss.svg"}
    launch = None
    if config.finetune.engine == LLM_JP_SFT:
        if sources.machines is None:
            raise ValueError("engine llm-jp-sft needs machines")
        places = _places(values, inputs, home, sources.machines)
        # A foreign model's positions are not known before it is read.
        length = 0 if sources.inputs else config.pretrain.seq_length
        places = dataclasses.replace(places, code=sources.code, length=length)
        launch = llm_jp_sft.launch(config, sources.machines, places)
        values["parallel"] = {"zero": config.parallel.zero}
        values["compat"] = sources.machines.compat
        # They share a batch: with another number of them it is another training.
        values["processes"] = 1 if config.finetune.launcher == "none" else sources.machines.world_size
    return StagePlan(stage, home, values, inputs, outputs, run={"wandb": section(config, "wandb")}, launch=launch)


def _places(values: Mapping[str, Any], inputs: Mapping[str, Path], home: Path, machines: Machines) -> llm_jp_sft.Places:
    """The engine's files in the run directory. A published launch reads the data as it is, ours one that is rendered.

    A model of the Hub is fetched by us, as one commit; ours reads it from ``base``.
    """
    named = inputs.get("model") or values["hub_model"]
    model = named if machines.compat or "model" in inputs else home / "base"
    group = f"finetune_{Path(named).name}_{machines.hosts[0]}_{time.strftime('%Y.%m.%d_%H.%M.%S')}"
    data = inputs["data"] if machines.compat and "data" in inputs else home / "data" / "train.jsonl"
    return llm_jp_sft.Places(model, data, home / "checkpoint", home / "launch", group[:128])


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Read the data and hand it to the engine; the metrics are the engine's.

    Raises :class:`UcllmError` with everything that is wrong with the data, before the model is loaded.
    """
    instructions = _instructions(job)
    if instructions.unanswered:
        text = _("{count} conversations end with a question; it was left out, because only answers are learned.")
        report.note(text.format(count=instructions.unanswered))
    engine = importlib.import_module(ENGINES[job.config["finetune"]["engine"]])
    metrics: dict[str, Any] = engine.finetune(job, instructions.conversations, report)
    if metrics["answer_loss"] is not None and metrics["answer_loss"] >= metrics["answer_loss_base"]:
        report.note(
            _(
                "Warning: the loss on held-out answers did not fall ({before:.3f} before, {after:.3f} after). "
                "Try more epochs or data, or another finetune.learning_rate."
            ).format(before=metrics["answer_loss_base"], after=metrics["answer_loss"])
        )
    return metrics


def _instructions(job: Job) -> Instructions:
    if "data" in job.inputs:
        return read_instructions(job.inputs["data"])
    reading = job.config["reading"]
    paths = [path for name, path in job.inputs.items() if name.startswith("text ")]
    return Instructions(from_corpus(corpus_text(paths, reading)))


def verify(job: Job) -> list[str]:
    """Load the folder as a stranger would: finite weights, the chat form, an answer to a held-out question."""
    import torch
    from transformers import AutoTokenizer

    folder = job.outputs["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    problems = []
    begins = tokenizer.bos_token if (tokenizer.chat_template or "").startswith("{{ bos_token }}") else ""
    wanted = f"{begins}### Human: a\n### Assistant: b{tokenizer.eos_token}\n### Human: c\n### Assistant:"
    rendered = tokenizer.apply_chat_template(list(_FORM), tokenize=False, add_generation_prompt=True)
    if rendered != wanted:
        problems.append(_("The chat template gives {text}.").format(text=repr(rendered)))
    model = load(folder)
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        problems.append(_("Weights are not numbers: {names}.").format(names=", ".join(broken[:5])))
        return problems
    for key in ("eos_token_id", "bos_token_id"):
        written = {getattr(config, key) for config in (model.config, model.generation_config)}
        if written != {getattr(tokenizer, key)}:
            problems.append(_("{key} is not the tokenizer's.").format(key=key))
    question = json.loads(job.outputs["history"].read_text(encoding="utf-8"))["question"]
    result = sample(model, tokenizer, len(tokenizer), question, chat=True)
    problems += result["problems"]
    if not result["problems"] and result["new_tokens"] < 1:
        problems.append(_("The model gives no answer to {question}.").format(question=repr(question)))
    return problems
