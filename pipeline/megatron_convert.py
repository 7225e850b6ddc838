"""A checkpoint of Megatron-DeepSpeed as Hugging Face's GPT2: merged, renamed, written one tensor at a time.

No weight is changed. A model that GPT2 would compute differently is refused, with every reason.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.megatron_checkpoint import Checkpoint, Shard, find

if TYPE_CHECKING:
    import torch

    #: Data type and shape of a weight; of all of them by name, in order.
    Entry = tuple[torch.dtype, tuple[int, ...]]
    Layout = dict[str, Entry]

#: The largest weight file, in bytes: what ``save_pretrained`` of transformers 4 makes.
SHARD_BYTES = 5_000_000_000
#: How far copies of one weight on two tensor-parallel ranks may lie apart, in steps of their data type and relative to
#: the largest value: sums in another order make them drift. Another step of the training is further away.
_DRIFT_STEPS, _DRIFT = 4, 1e-5
#: Safetensors' names of data types.
_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}

_ROWS, _COLUMNS, _EQUAL = 0, 1, None


@dataclass(frozen=True)
class _Rule:
    """Where a weight comes from, along which dimension its parts are joined, and what becomes of it."""

    source: str
    target: str
    joined: int | None  # every rank has the whole of it when ``None``
    linear: bool = False
    qkv: bool = False

    def merge(self, shards: Sequence[Shard], heads: int) -> torch.Tensor:
        """The whole weight as GPT2 keeps it."""
        import torch

        parts = [shard[self.source] for shard in shards]
        whole = parts[0] if self.joined is None or len(parts) == 1 else torch.cat(parts, dim=self.joined)
        if self.qkv:
            # Rows are [heads, 3, head size] in Megatron's format 2.0 and newer, and [3, heads, head size] here.
            whole = whole.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        # GPT2's Conv1D keeps a linear layer the other way round.
        return (whole.t() if self.linear else whole).contiguous()


_EMBEDDING = (
    _Rule("word_embeddings.weight", "transformer.wte.weight", _ROWS),
    _Rule("position_embeddings.weight", "transformer.wpe.weight", _EQUAL),
)
_LAYER = (
    _Rule("input_layernorm.weight", "ln_1.weight", _EQUAL),
    _Rule("input_layernorm.bias", "ln_1.bias", _EQUAL),
    _Rule("self_attention.query_key_value.weight", "attn.c_attn.weight", _ROWS, linear=True, qkv=True),
    _Rule("self_attention.query_key_value.bias", "attn.c_attn.bias", _ROWS, qkv=True),
    _Rule("self_attention.dense.weight", "attn.c_proj.weight", _COLUMNS, linear=True),
    _Rule("self_attention.dense.bias", "attn.c_proj.bias", _EQUAL),
    _Rule("post_attention_layernorm.weight", "ln_2.weight", _EQUAL),
    _Rule("post_attention_layernorm.bias", "ln_2.bias", _EQUAL),
    _Rule("mlp.dense_h_to_4h.weight", "mlp.c_fc.weight", _ROWS, linear=True),
    _Rule("mlp.dense_h_to_4h.bias", "mlp.c_fc.bias", _ROWS),
    _Rule("mlp.dense_4h_to_h.weight", "mlp.c_proj.weight", _COLUMNS, linear=True),
    _Rule("mlp.dense_4h_to_h.bias", "mlp.c_proj.bias", _EQUAL),
)
_NORM = (
    _Rule("weight", "transformer.ln_f.weight", _EQUAL),
    _Rule("bias", "transformer.ln_f.bias", _EQUAL),
)
_OUTPUT = (_Rule("lm_head.weight", "lm_head.weight", _ROWS),)


def _rules(checkpoint: Checkpoint) -> list[tuple[str, tuple[_Rule, ...]]]:
    """For each part of the checkpoint in order: what the names begin with, and its rules."""
    layers = [(f"transformer.h.{index}.", _LAYER) for index in range(checkpoint.layers)]
    return [("", _EMBEDDING), *layers, ("", _NORM), *([] if checkpoint.tied else [("", _OUTPUT)])]


def refusals(checkpoint: Checkpoint) -> list[Problem]:
    """Why GPT2 would not compute what was trained: one problem a reason, from the arguments of the training."""
    arguments = checkpoint.arguments
    if not arguments:
        return []
    heads, hidden = arguments["num_attention_heads"], arguments["hidden_size"]
    experts = arguments.get("num_experts") or [1]
    experts = experts if isinstance(experts, (list, tuple)) else [experts]
    positions = arguments.get("position_embedding_type")  # of newer versions of Megatron
    reasons = {
        _("rotary position embeddings"): arguments.get("use_rotary_position_embeddings")
        or positions in {"rope", "PositionEmbeddingType.rotary"},
        _("ALiBi"): arguments.get("alibi") or positions == "alibi",
        _("no learned position embeddings"): not arguments.get("add_position_embedding", True),
        _("linear layers without bias"): not arguments.get("add_bias_linear", True),
        _("the SwiGLU activation"): arguments.get("swiglu"),
        _("RMS norms"): arguments.get("normalization", "layernorm").lower() != "layernorm",
        _("layer norms around one (--apply-layernorm-1p)"): arguments.get("apply_layernorm_1p"),
        _("residual connections behind the norm"): arguments.get("apply_residual_connection_post_layernorm"),
        _("experts (MoE)"): any(each > 1 for each in experts) or (arguments.get("num_experts_switch") or 1) > 1,
        _("grouped key and value heads"): (arguments.get("num_key_value_heads") or heads) != heads,
        _("heads of another size than hidden size / heads"): (arguments.get("kv_channels") or 0) * heads
        not in {0, hidden},
        _("layers of Transformer Engine"): arguments.get("transformer_impl", "local") != "local",
        _("retrieval (RETRO)"): arguments.get("retro_add_retriever"),
        _("query, key and value in the order of a Megatron before 2.0"): checkpoint.version < 2.0,
    }
    return [
        Problem(
            "convert.not-gpt2",
            _("{path} cannot become a GPT2 model: it was trained with {reason}.").format(
                path=checkpoint.folder, reason=reason
            ),
            _("GPT2 has no such thing, and would compute something else with these weights."),
        )
        for reason, there in reasons.items()
        if there
    ]


def activation(arguments: Mapping[str, Any]) -> str:
    """transformers' name of what lies between the two layers of the MLP.

    In the order of ``ParallelMLP.__init__`` (``megatron/model/transformer.py``): ``--openai-gelu`` is the tanh form,
    ``--onnx-safe`` the exact one, and so is torch's own; but fused with the bias, as it is unless
    ``--no-bias-gelu-fusion`` says otherwise, it is the tanh form again (``megatron/model/fused_bias_gelu.py``).
    """
    if arguments.get("openai_gelu"):
        return "gelu_new"
    if arguments.get("onnx_safe"):
        return "gelu"
    if arguments.get("squared_relu"):
        return "relu2"
    return "gelu_new" if arguments.get("bias_gelu_fusion", True) else "gelu"


def gpt2_config(checkpoint: Checkpoint, layout: Layout) -> Any:
    """The ``GPT2Config`` of what was trained, without the tokenizer's ids."""
    import torch
    from transformers import GPT2Config

    dtype = functools.reduce(torch.promote_types, (each for each, _shape in layout.values()))

    arguments = checkpoint.arguments
    hidden, inner = arguments["hidden_size"], arguments.get("ffn_hidden_size")
    dropout = arguments.get("hidden_dropout", 0.1)
    config = GPT2Config(
        vocab_size=arguments["padded_vocab_size"],
        n_positions=arguments["max_position_embeddings"],
        n_embd=hidden,
        n_layer=checkpoint.layers,
        n_head=arguments["num_attention_heads"],
        n_inner=None if inner in {None, 4 * hidden} else inner,
        activation_function=activation(arguments),
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=arguments.get("attention_dropout", 0.1),
        layer_norm_epsilon=arguments.get("layernorm_epsilon", 1e-5),
        initializer_range=arguments.get("init_method_std", 0.02),
        tie_word_embeddings=checkpoint.tied,
        bos_token_id=None,  # GPT-2's own lies outside the vocabulary
        eos_token_id=None,
    )
    config.architectures = ["GPT2LMHeadModel"]
    # Its name in transformers 5, and before.
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
    return config


def shapes(checkpoint: Checkpoint) -> Layout:
    """Data type and shape of every weight that will be written, in order.

    Raises :class:`UcllmError` with every weight that is missing, too much, or of another shape than the arguments say,
    and every one whose copies on two ranks are not the same. Only those are read.
    """
    problems: list[Problem] = []
    found: Layout = {}
    for (place, shards), (prefix, rules) in zip(checkpoint.parts(), _rules(checkpoint)):
        for rank, shard in enumerate(shards):
            wanted = {rule.source for rule in rules}
            for text, names in (
                (_("{part}, rank {rank}, lacks {names}."), wanted - set(shard)),
                (_("{part}, rank {rank}, has what a GPT2 has not: {names}."), set(shard) - wanted),
            ):
                if names:
                    why = text.format(part=place, rank=rank, names=", ".join(sorted(names)[:6]))
                    problems.append(_not_ours(checkpoint, why))
        if any({rule.source for rule in rules} != set(shard) for shard in shards):
            continue
        for rule in rules:
            why = _inspect(rule, shards, _expected(rule, checkpoint))
            if why:
                problems.append(_not_ours(checkpoint, f"{place}, {why}"))
                continue
            size = list(_expected(rule, checkpoint))
            found[prefix + rule.target] = (shards[0][rule.source].dtype, tuple(size[::-1] if rule.linear else size))
    if problems:
        raise UcllmError.of(problems)
    return found


def _not_ours(checkpoint: Checkpoint, why: str) -> Problem:
    return Problem(
        "checkpoint.mixed",
        _("The weights in {path} do not fit together.").format(path=checkpoint.folder),
        why,
        _("Copy the checkpoint again into an empty folder, or name another: `--input DIR/global_stepN`."),
    )


def _expected(rule: _Rule, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The shape of the merged weight in Megatron's order, from the arguments of the training."""
    arguments = checkpoint.arguments
    hidden, inner = arguments["hidden_size"], arguments.get("ffn_hidden_size") or 4 * arguments["hidden_size"]
    rows = {
        "word_embeddings": arguments["padded_vocab_size"],
        "lm_head": arguments["padded_vocab_size"],
        "position_embeddings": arguments["max_position_embeddings"],
        "query_key_value": 3 * hidden,
        "dense_h_to_4h": inner,
    }
    *_rest, kind = ["norm", *rule.source.split(".")[:-1]]
    first = rows.get(kind, hidden)
    if kind.endswith("norm") or rule.source.endswith("bias"):
        return (first,)
    return (first, inner if kind == "dense_4h_to_h" else hidden)


def _inspect(rule: _Rule, shards: Sequence[Shard], expected: tuple[int, ...]) -> str:
    """What is wrong with a weight; empty when nothing is."""
    import torch

    parts = [shard[rule.source] for shard in shards]
    part = list(expected)
    if rule.joined is not None:
        part[rule.joined] //= len(parts)
    if any(list(each.shape) != part for each in parts):
        shape = " + ".join(str(tuple(each.shape)) for each in parts)
        return _("{name}: {shape} instead of {wanted}.").format(name=rule.source, shape=shape, wanted=tuple(part))
    if len({each.dtype for each in parts}) > 1 or str(parts[0].dtype) not in _DTYPES:
        kinds = ", ".join(sorted({str(each.dtype) for each in parts}))
        return _("{name}: the data types {kinds}.").format(name=rule.source, kinds=kinds)
    if rule.joined is None:
        first = parts[0].float()
        allowed = max(_DRIFT_STEPS * torch.finfo(parts[0].dtype).eps, _DRIFT) * float(first.abs().max())
        apart = max((float((each.float() - first).abs().max()) for each in parts[1:]), default=0.0)
        if apart > allowed:
            text = _("{name}: its copies differ by {difference}, so the files are of different steps.")
            return text.format(name=rule.source, difference=f"{apart:.1e}")
    return ""


@dataclass
class Conversion:
    """A checkpoint that can be converted, with the two doors that a model of transformers has for saving."""

    checkpoint: Checkpoint
    layout: Layout
    config: Any
    generation_config: Any = None

    def parameters(self) -> Iterator[torch.Tensor]:
        """Every weight, without its numbers."""
        import torch

        return (torch.empty(shape, dtype=dtype, device="meta") for dtype, shape in self.layout.values())

    def check_tokenizer(self, tokenizer: Path, pieces: int) -> None:
        """Raises :class:`UcllmError` when the run recorded another number of ids than this tokenizer makes there.

        Megatron adds what the tokenizer lacks of <CLS>, <SEP>, <EOD>, <MASK>, <PAD>, <BOS>, <EOS>, and the extra ids
        asked for (``_SentencePieceTokenizer`` in ``megatron/tokenizer/tokenizer.py``).
        """
        recorded = self.checkpoint.original_vocab_size
        added = 7 + (self.checkpoint.arguments.get("vocab_extra_ids") or 0)
        if recorded and not pieces <= recorded <= pieces + added:
            raise UcllmError(
                "convert.other-tokenizer",
                _("{path} is not the tokenizer that the model was trained with.").format(path=tokenizer),
                _(
                    "It has {count} pieces; that of the training had {recorded} ids, at most {added} of them added."
                ).format(count=pieces, recorded=recorded, added=added),
                _("Name the tokenizer that the training text was encoded with: `--tokenizer MODEL`."),
            )

    def save_pretrained(self, folder: Path, max_shard_size: int = SHARD_BYTES) -> None:
        """Write weights and configurations. Raises :class:`UcllmError` for weights that are not numbers."""
        write(self.checkpoint, self.layout, folder, max_shard_size)
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)


def open_checkpoint(folder: Path, note: Callable[[str], None] = lambda text: None) -> Conversion:  # noqa: ARG005
    """The checkpoint in ``folder``, or the newest whole one there; ``note`` is told which.

    Raises :class:`UcllmError` with every reason why it cannot be converted.
    """
    checkpoint = find(folder, note)
    problems = [*checkpoint.problems, *refusals(checkpoint)]
    if problems:
        raise UcllmError.of(problems)
    layout = shapes(checkpoint)
    return Conversion(checkpoint, layout, gpt2_config(checkpoint, layout))


def weights(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the GPT2 model in the order of :func:`shapes`, merged when it is asked for."""
    heads = checkpoint.arguments["num_attention_heads"]
    for (_place, shards), (prefix, rules) in zip(checkpoint.parts(), _rules(checkpoint)):
        for rule in rules:
            yield prefix + rule.target, rule.merge(shards, heads)


def write(checkpoint: Checkpoint, layout: Layout, folder: Path, limit: int = SHARD_BYTES) -> None:
    """Write the weights as safetensors, in files of at most ``limit`` bytes (a larger weight has one of its own).

    Safetensors' own writer wants all tensors of a file at once and copies them; its format, a header and the bytes,
    lets each go before the next is made, so memory holds one layer. ``layout`` is what :func:`shapes` found.
    Raises :class:`UcllmError` for weights that are not numbers.
    """
    import torch

    files: list[Layout] = [{}]
    for name, entry in layout.items():
        if files[-1] and sum(map(_bytes, files[-1].values())) + _bytes(entry) > limit:
            files.append({})
        files[-1][name] = entry
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ["model.safetensors"]
    broken: list[str] = []
    merged = weights(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, entries in zip(names, files):
        with (folder / file_name).open("wb") as stream:
            stream.write(_header(entries))
            for _name in entries:
                name, tensor = next(merged)
                low, high = torch.aminmax(tensor)  # a NaN becomes both
                if not bool(torch.isfinite(low) & torch.isfinite(high)):
                    broken.append(name)
                stream.write(tensor.view(torch.uint8).numpy().data)
    if broken:
        raise UcllmError(
            "weights.not-finite",
            _("The weights in {path} are not numbers: {names}.").format(
                path=checkpoint.folder, names=", ".join(broken[:5])
            ),
            _("The training that made them diverged."),
            _("Train again with a lower `--set pretrain.learning_rate=…`, or name an earlier checkpoint."),
        )
    if len(files) > 1:
        places = {name: file_name for file_name, entries in zip(names, files) for name in entries}
        total = sum(map(_bytes, layout.values()))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(entry: Entry) -> int:
    import torch

    dtype, shape = entry
    return prod(shape) * int(torch.finfo(dtype).bits) // 8


def _header(entries: Layout) -> bytes:
    """The beginning of a safetensors file: the length of its JSON (u64), and where each tensor lies behind it."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + _bytes((dtype, shape))
        content[name] = {"dtype": _DTYPES[str(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
