"""Writes checkpoints as Megatron-DeepSpeed does, from random GPT-2 models: run by the environment's Python.

python megatron_model.py FOLDER SPEC...  →  FOLDER/NAME/global_stepN with a file `latest`, and FOLDER/NAME.reference,
the same model in Hugging Face's form. A SPEC is JSON: the fields of :class:`Spec`.
"""

from __future__ import annotations

import argparse
import collections
import enum
import importlib
import json
import random
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

torch: Any = None  # by name, so that the test suite's own environment does not need it


class ModelType(enum.Enum):
    """Pickled under Megatron's name."""

    encoder_or_decoder = 1
    encoder_and_decoder = 2


@dataclass
class Spec:
    """One run: its shape, how it was spread, and arguments of Megatron that differ from the usual ones."""

    name: str = "run"
    step: int = 20
    tp: int = 1
    pp: int = 1
    zero: int = 0
    dtype: str = "float32"
    tied: bool = True
    no_pp: bool = False
    seed: int = 1
    rows: int = 384
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    positions: int = 64
    recorded_vocab: int = 333
    activation: str = "gelu_new"
    arguments: dict[str, Any] = field(default_factory=dict)


def _arguments(spec: Spec) -> argparse.Namespace:
    """What Megatron keeps, with one of each kind of thing that it holds."""
    return argparse.Namespace(
        num_layers=spec.layers, hidden_size=spec.hidden, ffn_hidden_size=4 * spec.hidden,
        kv_channels=spec.hidden // spec.heads, num_attention_heads=spec.heads, num_key_value_heads=spec.heads,
        max_position_embeddings=spec.positions, padded_vocab_size=spec.rows, vocab_extra_ids=0,
        tensor_model_parallel_size=spec.tp, pipeline_model_parallel_size=1 if spec.no_pp else spec.pp,
        add_position_embedding=True, use_rotary_position_embeddings=False, add_bias_linear=True, swiglu=False,
        squared_relu=False, openai_gelu=False, onnx_safe=None, bias_gelu_fusion=spec.activation == "gelu_new",
        normalization="layernorm", layernorm_epsilon=1e-5, apply_layernorm_1p=False, num_experts=[1],
        apply_residual_connection_post_layernorm=False, transformer_impl="local", init_method_std=0.02,
        untie_embeddings_and_output_weights=not spec.tied, hidden_dropout=0.0, attention_dropout=0.0,
        params_dtype=getattr(torch, spec.dtype), model_type=ModelType.encoder_or_decoder,
        attn_mask=torch.ones(1, 1, 8, 8).triu(1).bool(), data_path=["/somewhere/text_document"],
    )  # fmt: skip


def write(folder: Path, spec: Spec) -> Path:
    """Write one checkpoint and its reference; returns the folder of the step."""
    global torch
    torch, numpy, transformers = map(importlib.import_module, ("torch", "numpy", "transformers"))
    torch.manual_seed(spec.seed)
    shape = transformers.GPT2Config(
        vocab_size=spec.rows, n_positions=spec.positions, n_embd=spec.hidden, n_layer=spec.layers, n_head=spec.heads,
        activation_function=spec.activation, tie_word_embeddings=spec.tied, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(shape)
    with torch.no_grad():
        for each in model.parameters():  # norms and biases too: they begin as ones and zeros
            each.add_(torch.randn_like(each) * 0.05)
    model.to(getattr(torch, spec.dtype))
    model.save_pretrained(folder / f"{spec.name}.reference")
    weights = {name: each.detach() for name, each in model.state_dict().items()}
    step = folder / spec.name / f"global_step{spec.step}"
    step.mkdir(parents=True, exist_ok=True)
    (step.parent / "latest").write_text(step.name)

    parts = [_parts(spec, weights, rank) for rank in range(spec.tp)]
    if not spec.no_pp:
        for rank, part in enumerate(parts):
            for number, content in enumerate(part, start=1):
                torch.save(content, step / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
    for module in ("megatron", "megatron.core", "megatron.core.enums"):
        sys.modules.setdefault(module, types.ModuleType(module))
    sys.modules["megatron.core.enums"].ModelType = ModelType  # type: ignore[attr-defined]
    ModelType.__module__ = "megatron.core.enums"
    arguments = _arguments(spec)
    vars(arguments).update(spec.arguments)
    for rank in range(spec.tp * (1 if spec.no_pp else spec.pp)):
        state = {
            "module": _module(spec, parts[rank]) if spec.no_pp else None,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4)}}},
            "sparse_tensor_module_names": set(),
            "param_shapes": [collections.OrderedDict(a=torch.Size([2, 3]))],
            "device": torch.device("cpu"),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "ds_version": "0.12.4",
            "dp_world_size": 1,
            "global_steps": spec.step,
            "iteration": spec.step,
            "checkpoint_version": 3.0,
            "args": arguments,
            "universal_checkpoint_info": {"original_vocab_size": spec.recorded_vocab},
            "rng_state": [
                {
                    "random_rng_state": random.Random(1).getstate(),
                    "np_rng_state": numpy.random.RandomState(1).get_state(),
                    "torch_rng_state": torch.get_rng_state(),
                    "scalar": numpy.float64(0.5),
                }
            ],
        }
        torch.save(state, step / f"mp_rank_{rank:02d}_model_states.pt")
    if spec.zero:
        for rank in range(spec.tp):
            (step / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt").write_bytes(b"not read")
    return step


def _parts(spec: Spec, weights: dict[str, Any], rank: int) -> list[dict[str, Any]]:
    """The layer files of one tensor-parallel rank: the inverse of the conversion, written down independently of it."""

    def rows(tensor: Any) -> Any:
        return tensor.chunk(spec.tp, dim=0)[rank].clone()

    def columns(tensor: Any) -> Any:
        return tensor.chunk(spec.tp, dim=1)[rank].clone()

    def interleaved(tensor: Any) -> Any:
        """Rows [3, heads, head size] as [heads, 3, head size]."""
        size = spec.hidden // spec.heads
        heads = [tensor[(k * spec.heads + h) * size :][:size] for h in range(spec.heads) for k in range(3)]
        return torch.cat(heads)

    found = [
        {
            "word_embeddings.weight": rows(weights["transformer.wte.weight"]),
            "position_embeddings.weight": weights["transformer.wpe.weight"].clone(),
        }
    ]
    for number in range(spec.layers):
        one = {n.split(".", 3)[3]: w for n, w in weights.items() if n.startswith(f"transformer.h.{number}.")}
        found.append(
            {
                "input_layernorm.weight": one["ln_1.weight"].clone(),
                "input_layernorm.bias": one["ln_1.bias"].clone(),
                "self_attention.query_key_value.weight": rows(interleaved(one["attn.c_attn.weight"].t())),
                "self_attention.query_key_value.bias": rows(interleaved(one["attn.c_attn.bias"])),
                "self_attention.dense.weight": columns(one["attn.c_proj.weight"].t()),
                "self_attention.dense.bias": one["attn.c_proj.bias"].clone(),
                "post_attention_layernorm.weight": one["ln_2.weight"].clone(),
                "post_attention_layernorm.bias": one["ln_2.bias"].clone(),
                "mlp.dense_h_to_4h.weight": rows(one["mlp.c_fc.weight"].t()),
                "mlp.dense_h_to_4h.bias": rows(one["mlp.c_fc.bias"]),
                "mlp.dense_4h_to_h.weight": columns(one["mlp.c_proj.weight"].t()),
                "mlp.dense_4h_to_h.bias": one["mlp.c_proj.bias"].clone(),
            }
        )
    found.append({name: weights[f"transformer.ln_f.{name}"].clone() for name in ("weight", "bias")})
    if not spec.tied:
        found.append({"lm_head.weight": rows(weights["lm_head.weight"])})
    return found


def _module(spec: Spec, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run without pipeline parallelism keeps of one rank."""
    embedding = {name.split(".")[0]: {"weight": each} for name, each in parts[0].items()}
    encoder = {f"layers.{i}.{name}": each for i in range(spec.layers) for name, each in parts[1 + i].items()}
    encoder.update({f"final_layernorm.{name}": each for name, each in parts[1 + spec.layers].items()})
    model = {"embedding": embedding, "encoder": collections.OrderedDict(encoder), "moe_state_dict": {}}
    if not spec.tied:
        model["output_layer"] = {"weight": parts[-1]["lm_head.weight"]}
    return {"language_model": model}


if __name__ == "__main__":
    for text in sys.argv[2:]:
        write(Path(sys.argv[1]), Spec(**json.loads(text)))
