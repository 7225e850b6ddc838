"""Step 3-1: a checkpoint and a SentencePiece model become a folder that any current transformers loads.

The checkpoint is a model in Hugging Face's form, such as engine ``torch`` makes, or one of Megatron-DeepSpeed
(:mod:`pipeline.megatron_convert`).

The weights stay as they are, padded rows too: only what a reader needs to know about them is written. Fixed on the way:
the special ids are the tokenizer's (a GPT-2 configuration says 50256 for both), a base model ends at ``<EOD>``, and
generation never chooses a padded row, which was trained only to be unlikely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import megatron_convert, megatron_verify
from pipeline.errors import UcllmError
from pipeline.generate import check
from pipeline.hf_tokenizer import read_model, special_tokens, write_hf_tokenizer
from pipeline.i18n import _
from pipeline.megatron_checkpoint import is_megatron
from pipeline.model_folder import check_weights
from pipeline.provenance import check_unaltered, maker
from pipeline.runs import StagePlan, sha256_file

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.stages import Sources

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """Convert the recipe's own pretraining, or ``--input CHECKPOINT --tokenizer M.model --output DIR``.

    CHECKPOINT is a model folder, a ``global_stepN`` of Megatron-DeepSpeed, or the folder that such ones are in.

    Raises :class:`UcllmError` when a checkpoint of the user's own comes without its tokenizer.
    """
    del config  # nothing in it changes what is made
    home = sources.home(stage)
    checkpoint, tokenizer = sources.root / "pretrain" / "model", sources.root / "tokenizer" / "tokenizer.model"
    if sources.inputs:
        if sources.tokenizer is None:
            raise UcllmError(
                "convert.no-tokenizer",
                _("A checkpoint of your own needs its tokenizer."),
                _("The folder holds weights only; the wrong tokenizer would make a model that speaks nonsense."),
                _("Add `--tokenizer MODEL`, the SentencePiece .model file that the training text was encoded with."),
            )
        checkpoint = Path(sources.inputs[0]).absolute()
    if sources.tokenizer is not None:
        tokenizer = sources.tokenizer.absolute()
    output = sources.output.absolute() if sources.output else home / "model"
    return StagePlan(stage, home, {}, {"checkpoint": checkpoint, "tokenizer": tokenizer}, {"model": output})


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Write the folder. Raises :class:`UcllmError` for a folder that is no model, damaged weights, a tokenizer that
    does not belong to them.
    """
    checkpoint, tokenizer, output = job.inputs["checkpoint"], job.inputs["tokenizer"], job.outputs["model"]
    megatron = is_megatron(checkpoint)
    if not megatron:
        check_checkpoint(checkpoint)
    check_unaltered(checkpoint)
    made_by, _sha256 = maker(checkpoint)
    check_same_tokenizer(made_by, tokenizer)
    report.progress(1, 3, "steps")

    pieces = [piece.text for piece in read_model(tokenizer).pieces]
    roles = special_tokens(read_model(tokenizer))
    ids = {role: pieces.index(name) for role, name in roles.items() if isinstance(name, str)}
    source: Any = megatron_convert.open_checkpoint(checkpoint, report.note) if megatron else load_checkpoint(checkpoint)
    rows = int(source.config.vocab_size)
    _check_size(tokenizer, len(pieces), rows)
    if megatron:
        source.check_tokenizer(tokenizer, len(pieces))
    if "eos_token" not in ids:
        report.note(_("The tokenizer has no <EOD> and no </s>: generation will stop only at its length limit."))
    report.progress(2, 3, "steps")

    source.generation_config = _describe(source.config, ids, range(len(pieces), rows))
    source.save_pretrained(output, max_shard_size=megatron_convert.SHARD_BYTES)
    write_hf_tokenizer(tokenizer, output, model_max_length=int(source.config.n_positions))
    report.progress(3, 3, "steps")
    import torch
    import transformers

    return {
        "parameters": sum(each.numel() for each in source.parameters()),
        "vocab_size": len(pieces),
        "padded_rows": rows - len(pieces),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _check_size(tokenizer: Path, pieces: int, rows: int) -> None:
    """Raises :class:`UcllmError` for a tokenizer with more pieces than the model has rows."""
    if pieces > rows:
        raise UcllmError(
            "convert.tokenizer-too-large",
            _("{path} does not belong to this model.").format(path=tokenizer),
            _("It has {count} pieces, and the model has {rows} rows.").format(count=pieces, rows=rows),
            _("Name the tokenizer that the training text was encoded with: `--tokenizer MODEL`."),
        )


def _describe(config: Any, ids: Mapping[str, int], padding: range) -> Any:
    """Say in the model's configuration what its ids mean; returns the ``GenerationConfig``."""
    from transformers import GenerationConfig

    special = {f"{role}_token_id": ids.get(f"{role}_token") for role in ("bos", "eos", "pad")}
    for name, value in special.items():
        setattr(config, name, value)
    config.use_cache = True  # training switches it off
    suppressed = {"suppress_tokens": list(padding)} if padding else {}
    return GenerationConfig(**special, **suppressed)


def check_checkpoint(folder: Path) -> None:
    """Raises :class:`UcllmError` unless ``folder`` holds a GPT-2 in Hugging Face's form with whole weights."""
    if not folder.is_dir():
        raise _not_a_model(folder, _("It is a file."), _("Name the folder that holds it."))
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if not (folder / "config.json").is_file():
        hint = _("Name one of the checkpoints in it: `--input {path}`.").format(path=steps[-1]) if steps else ""
        raise _not_a_model(folder, _("It has no config.json."), hint)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_model(folder, _("Its config.json is damaged: {error}").format(error=error)) from error
    if kind != "gpt2":
        raise _not_a_model(folder, _("It is a {kind}, and pretraining makes gpt2.").format(kind=kind))
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise _not_a_model(folder, _("It has no model.safetensors."))
    check_weights(folder)


def check_same_tokenizer(made_by: Mapping[str, Any] | None, tokenizer: Path) -> None:
    """Raises :class:`UcllmError` when the manifest of the pretraining names another tokenizer than ``tokenizer``."""
    recorded = (made_by or {}).get("inputs", {}).get("tokenizer")
    if recorded is not None and recorded["sha256"] != sha256_file(tokenizer):
        raise UcllmError(
            "convert.other-tokenizer",
            _("{path} is not the tokenizer that the model was trained with.").format(path=tokenizer),
            _("The sha256 in the manifest of the pretraining is another."),
            _("Use `--tokenizer {path}`, or pretrain again: `ucllm train pretrain`.").format(path=recorded["path"]),
        )


def load_checkpoint(folder: Path) -> Any:
    """The ``GPT2LMHeadModel`` in ``folder``, every weight there, of the right shape and a number.

    Raises :class:`UcllmError` otherwise.
    """
    import torch
    from transformers import GPT2LMHeadModel

    try:
        model, loading = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise _not_a_model(folder, str(error).splitlines()[0]) from error
    for kind, text in (
        ("missing_keys", _("Weights are missing: {names}.")),
        ("unexpected_keys", _("It has weights that a GPT-2 has not: {names}.")),
        ("mismatched_keys", _("The shape of weights is not that of config.json: {names}.")),
    ):
        names = sorted(str(each) for each in loading[kind])
        if names:
            raise _not_a_model(folder, text.format(names=", ".join(names[:5])))
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UcllmError(
            "weights.not-finite",
            _("The weights in {path} are not numbers: {names}.").format(path=folder, names=", ".join(broken[:5])),
            _("The training that made them diverged."),
            _("Train again with a lower `--set pretrain.learning_rate=…`, or name an earlier checkpoint."),
        )
    return model.eval()


def _not_a_model(folder: Path, why: str, hint: str = "") -> UcllmError:
    hint = hint or _("Name a folder with config.json and model.safetensors, as `ucllm train pretrain` makes it.")
    what = _("{path} is not a model that can be converted.").format(path=folder)
    return UcllmError("convert.not-a-model", what, why, hint)


def verify(job: Job) -> list[str]:
    """Load the folder again beside the checkpoint: the same weights or logits, the tokenizer's ids, real tokens."""
    checkpoint, output = job.inputs["checkpoint"], job.outputs["model"]
    if is_megatron(checkpoint):
        return megatron_verify.problems(megatron_convert.open_checkpoint(checkpoint).checkpoint, output)
    result = check(output, "Once upon a time,", reference=checkpoint)
    problems: list[str] = result["problems"]
    return problems
