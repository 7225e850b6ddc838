"""The configuration of steps 1 to 5: what a recipe may say, its types, its limits.

A recipe is TOML with one table per dataclass below. Values come, later over earlier, from the defaults here, the
recipe, ``--set a.b=c``, and the options of the command. Every problem is found before anything starts, all at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def _value(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    words: Mapping[str, Any] | None = None,
) -> Any:
    """A field with its limits: ``low <= value <= high``, ``value > above``, or one of ``choices``.

    ``words`` may be written for values: ``{"auto": 0}``.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices, "words": words or {}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass
class DataConfig:
    """The text that the tokenizer and corpus stages read."""

    #: A name of ``recipes/datasets.toml``; fetched once, checked by sha256. Empty: ``input`` must name files.
    dataset: str = _value("")
    #: Files of one's own, instead of ``dataset``: text or JSONL, plain or ``.gz``.
    input: list[str] = _value([])


@dataclass
class TokenizerConfig:
    """Step 1. The options that are not here are the published ones and fixed: see ``pipeline/tokenizer.py``."""

    #: The seed's ``--vocab_size``. 7 special tokens, newline, <unk> and 256 byte pieces are part of it.
    vocab_size: int = _value(2000, low=300, high=1_000_000)
    character_coverage: float = _value(0.9995, above=0.0, high=1.0)
    #: Pinned, because SentencePiece's result depends on the number of threads.
    num_threads: int = _value(2, low=1, high=1024)
    #: Lines longer than this many bytes are left out of tokenizer training (SentencePiece's own default).
    max_line_bytes: int = _value(4192, low=16)


@dataclass
class CorpusConfig:
    """Step 2, first half: text to Megatron's ``.bin/.idx``."""

    #: The key of each JSON line that holds the text.
    json_key: str = _value("text")
    #: A document of a plain text file is this many non-empty lines; 0 makes each file one document.
    lines_per_document: int = _value(20, low=0)
    #: Of a plain text, read only what follows the first line that begins so, and what comes before the first later
    #: line that begins so: for the licence around a public-domain book. Empty: from the beginning, to the end. The
    #: tokenizer still learns from the whole file, as the seed's does.
    start_after: str = _value("")
    end_before: str = _value("")
    #: End every document with <EOD>.
    append_eod: bool = _value(True)
    #: ``error`` stops at the first bad JSON line before anything is published; ``skip`` counts and reports them.
    on_bad_line: str = _value("error", choices=("error", "skip"))


@dataclass
class ModelConfig:
    """The shape of the GPT-2 model."""

    layers: int = _value(12, low=1, high=1024)
    hidden_size: int = _value(768, low=8)
    heads: int = _value(12, low=1)
    dropout: float = _value(0.1, low=0.0, high=0.9)
    #: Standard deviation of the initial weights.
    init_std: float = _value(0.02, above=0.0, high=1.0)


@dataclass
class ParallelConfig:
    """How a model is spread over GPUs. Data parallelism is what is left: GPUs / (tp x pp)."""

    #: Tensor parallelism: every layer is cut into so many parts.
    tp: int = _value(1, low=1, high=1024)
    #: Pipeline parallelism: the layers lie on so many stages.
    pp: int = _value(1, low=1, high=1024)
    #: DeepSpeed's ZeRO stage: what data-parallel GPUs share (1 optimizer, 2 gradients too, 3 weights too).
    zero: int = _value(0, low=0, high=3)


@dataclass
class WandbConfig:
    """Weights & Biases. The key comes from ``wandb login`` or ``WANDB_API_KEY``, never from here."""

    mode: str = _value("off", choices=("off", "offline", "online"))
    entity: str = _value("")
    project: str = _value("")


@dataclass
class PretrainConfig:
    """Step 2, second half."""

    engine: str = _value("torch", choices=("torch", "megatron-deepspeed"))
    #: Optimizer steps, the stop of the run.
    steps: int = _value(1000, low=1)
    #: Stop after so many tokens, rounded up to whole steps, instead of after ``steps``; 0: ``steps`` says it.
    tokens: int = _value(0, low=0)
    #: Stop after so many hours, with a checkpoint, if the steps are not done by then; 0: no limit.
    hours: float = _value(0.0, low=0.0)
    #: Tokens a sample; also the model's number of positions.
    seq_length: int = _value(2048, low=8)
    #: Samples on the device at once; ``auto`` (0) takes the most whose estimate fits the GPU's memory.
    micro_batch_size: int = _value(1, low=0, words={"auto": 0})
    #: Samples an optimizer step; the rest is gradient accumulation.
    global_batch_size: int = _value(256, low=1)
    learning_rate: float = _value(6.0e-4, above=0.0)
    min_learning_rate: float = _value(1.0e-6, low=0.0)
    warmup_steps: int = _value(0, low=0)
    weight_decay: float = _value(0.1, low=0.0)
    adam_beta1: float = _value(0.9, low=0.0, high=0.9999)
    adam_beta2: float = _value(0.95, low=0.0, high=0.9999999)
    clip_grad: float = _value(1.0, above=0.0)
    #: ``auto``: engine ``torch`` takes bf16 where the hardware computes in it, else fp32; ``megatron-deepspeed`` takes
    #: fp16 as the guide does, on a CPU fp32.
    precision: str = _value("auto", choices=("auto", "fp32", "bf16", "fp16"))
    seed: int = _value(1234, low=0, high=2**32 - 1)
    #: The share of documents, at the end of the corpus, that is never trained on.
    validation_fraction: float = _value(0.05, low=0.0, high=0.5)
    eval_interval: int = _value(100, low=1)
    #: Batches of an evaluation; engine ``torch`` always takes all of the held-out text.
    eval_iters: int = _value(10, low=1)
    save_interval: int = _value(1000, low=1)
    #: Compute activations again in the backward pass instead of keeping them: less memory, a third more work.
    activation_checkpointing: bool = _value(False)
    #: Checkpoints kept; older ones of the same run are removed.
    keep_checkpoints: int = _value(2, low=1)
    log_interval: int = _value(10, low=1)


@dataclass
class FinetuneConfig:
    """Step 4."""

    engine: str = _value("trl", choices=("trl", "llm-jp-sft"))
    #: What starts the processes: ``none`` is one process, ``deepspeed`` shards by ``parallel.zero`` over all nodes,
    #: ``accelerate`` takes the GPUs of one node.
    launcher: str = _value("none", choices=("none", "deepspeed", "accelerate"))
    #: Instruction data: a JSONL file (``text``, ``messages`` or ``prompt``/``completion``), or ``corpus`` for the
    #: pairs that :mod:`pipeline.instructions` builds from the recipe's own text.
    data: str = _value("corpus")
    epochs: float = _value(2.0, above=0.0)
    learning_rate: float = _value(2.0e-5, above=0.0)
    warmup_ratio: float = _value(0.1, low=0.0, high=1.0)
    micro_batch_size: int = _value(8, low=1)
    gradient_accumulation_steps: int = _value(1, low=1)
    #: Tokens a conversation; longer ones are cut. 0 takes the model's number of positions.
    max_seq_length: int = _value(0, low=0)
    validation_fraction: float = _value(0.1, low=0.0, high=0.5)
    #: Rank of the LoRA adapters, which are merged into the model at the end; 0 trains all weights.
    lora_rank: int = _value(0, low=0, high=1024)
    #: Put several short conversations into one sample.
    packing: bool = _value(False)
    #: Compute activations again in the backward pass instead of keeping them: less memory, a third more work.
    gradient_checkpointing: bool = _value(False)
    seed: int = _value(1234, low=0, high=2**32 - 1)


@dataclass
class UploadConfig:
    """Steps 3-2 and 5. Without a repository the folder is made and checked, and nothing leaves the machine."""

    pretrained_repo: str = _value("")
    finetuned_repo: str = _value("")
    #: The seed's ``--test_prompt_text``.
    prompt: str = _value("Once upon a time,")
    #: SPDX id or Hub licence name for the model card; empty takes the dataset's, else ``other``.
    license: str = _value("")
    private: bool = _value(True)


@dataclass
class Config:
    """A whole run: every table of a recipe, complete and valid."""

    name: str = "custom"
    description: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    upload: UploadConfig = field(default_factory=UploadConfig)


def section(config: Config, name: str) -> dict[str, Any]:
    """One table of ``config`` as plain JSON values."""
    return dataclasses.asdict(getattr(config, name))


def steps(config: Config) -> int:
    """Optimizer steps of the pretraining: ``pretrain.tokens`` in whole steps, rounded up, else ``pretrain.steps``."""
    pretrain = config.pretrain
    per_step = pretrain.global_batch_size * pretrain.seq_length
    return -(-pretrain.tokens // per_step) if pretrain.tokens else pretrain.steps


def padded_vocab_size(vocab_size: int, multiple: int = 128) -> int:
    """The vocabulary as Megatron pads it.

    Megatron's SentencePiece wrapper adds <PAD>, <BOS> and <EOS> (three ids) before padding to a multiple of 128 times
    the tensor-parallel size (``megatron/tokenizer/tokenizer.py``): 2000 becomes 2048.
    """
    return -(-(vocab_size + 3) // multiple) * multiple


def canonical_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
