"""What a pretraining costs, from the configuration alone: nothing is read and nothing measured.

An estimate warns and never refuses. Each constant says where it comes from.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from pipeline.config import Config, padded_vocab_size, steps
from pipeline.engines import torch_engine
from pipeline.launch import Machines

#: Floating-point operations a second that one CPU core does in training, all told: measured with recipe botchan-tiny on
#: two cores of a Zen 4 (11,300 tokens/s). Other processors and shapes differ by a factor of a few.
CPU_FLOPS_PER_CORE = 3.6e10
#: Resident bytes of Python with torch and transformers, before any model: measured with torch 2.13 for the CPU.
LIBRARIES_BYTES = 500_000_000
#: Bytes on a GPU before any model: CUDA's context, NCCL's and cuBLAS's buffers; an estimate.
CONTEXT_BYTES = 2_000_000_000
#: Dense operations a second in 16 bits, with tensor cores, and in fp32, without: NVIDIA's data sheets (SXM).
GPU_FLOPS = {
    "L4": (1.21e14, 3.03e13),
    "V100": (1.25e14, 1.57e13),
    "A100": (3.12e14, 1.95e13),
    "H100": (9.89e14, 6.7e13),
    "H200": (9.89e14, 6.7e13),
}
#: The share of it that Megatron-DeepSpeed reaches on small models, from the guide's own figure: 300 billion tokens of
#: the 0.125B model in 61 to 85 days on one L4 are 25 to 35 %.
GPU_UTILIZATION = 0.3
#: Of a GPU that is not in the table.
UNKNOWN_GPU_FLOPS = (1e14, 2e13)
#: The largest share of a GPU's memory that an estimate may fill.
MARGIN = 0.9


def parameters(config: Config) -> int:
    """Weights of the model, the padded vocabulary's rows included."""
    hidden, layers = config.model.hidden_size, config.model.layers
    # Attention 4 h^2, MLP 8 h^2, their biases 9 h, two layer norms 4 h; embeddings; the last layer norm.
    rows = _vocabulary(config) + config.pretrain.seq_length + 2
    return layers * (12 * hidden**2 + 13 * hidden) + rows * hidden


def flops(config: Config) -> int:
    """Of the whole run: 6 a parameter and token, and attention's 12 x layers x hidden x length (PaLM, appendix B)."""
    hidden, length = config.model.hidden_size, config.pretrain.seq_length
    a_token = 6 * (parameters(config) - length * hidden) + 12 * config.model.layers * hidden * length
    return tokens(config) * a_token


def tokens(config: Config) -> int:
    """Tokens that are trained on in all."""
    return steps(config) * config.pretrain.global_batch_size * config.pretrain.seq_length


def estimate(config: Config, cores: int = 1, machines: Machines | None = None) -> dict[str, Any]:
    """``seconds`` and ``days`` of the run, ``parameters``, ``tokens``, ``flops``, ``memory_bytes``, ``disk_bytes``.

    On GPUs ``memory_bytes`` is the peak of one of them, on CPU cores that of the process. Without ``machines``, or with
    engine ``torch`` on a CPU, ``cores`` do the work.
    """
    count = parameters(config)
    if machines is not None and machines.device == "cuda":
        again = 4 / 3 if config.pretrain.activation_checkpointing else 1  # the forward pass a second time
        speed = _gpu_flops(machines.gpu)[config.pretrain.precision == "fp32"] * GPU_UTILIZATION
        seconds = flops(config) * again / (speed * machines.world_size)
        memory = gpu_memory(config, machines)
    else:
        seconds = flops(config) / (CPU_FLOPS_PER_CORE * cores)
        memory = cpu_memory(config)
    saved = torch_engine.CHECKPOINT_PER_PARAMETER * (config.pretrain.keep_checkpoints + 1)
    return {
        "seconds": math.ceil(seconds),
        "days": float(f"{seconds / 86_400:.3g}"),
        "parameters": count,
        "tokens": tokens(config),
        "flops": flops(config),
        "memory_bytes": memory,
        "disk_bytes": count * (saved + torch_engine.MODEL_PER_PARAMETER),
    }


def cpu_memory(config: Config) -> int:
    """The peak of one process that trains in fp32 on a CPU, in bytes."""
    return LIBRARIES_BYTES + parameters(config) * torch_engine.MEMORY_PER_PARAMETER + _kept(config)


def gpu_memory(config: Config, machines: Machines) -> int:
    """The peak of the GPU that holds most, in bytes: weights, gradients, optimizer, activations.

    Mixed precision keeps 2 bytes of weights, 2 of gradients and 12 of the optimizer a parameter (ZeRO, arXiv
    1910.02054, section 3.1), which ZeRO's stages share from the optimizer on.
    """
    parallel = config.parallel
    split = parallel.tp * parallel.pp
    shared = machines.data_parallel(parallel)
    full = config.pretrain.precision == "fp32"
    state = (4, 4, 8) if full else (2, 2, 12)
    of_weights, of_gradients, of_optimizer = (
        size / (shared if parallel.zero >= stage else 1) for size, stage in zip(state, (3, 2, 1))
    )
    # The first stage of a pipeline holds the embeddings.
    embeddings = (_vocabulary(config) + config.pretrain.seq_length) * config.model.hidden_size
    share = (parameters(config) - embeddings) / split + embeddings / parallel.tp
    return round(CONTEXT_BYTES + share * (of_weights + of_gradients + of_optimizer) + _activations(config, full))


def _activations(config: Config, full: bool) -> float:
    """Bytes kept for the backward pass on a GPU with flash attention, and the logits.

    Of 17 numbers x hidden a token and layer, tensor parallelism shares 12 (arXiv 2205.05198, equation 2, without the
    attention scores). A pipeline's first stage holds its part of the layers for as many micro-batches as there are
    stages: together all layers once. With checkpointing each layer's input is kept, and one layer in whole.
    """
    model, tp = config.model, config.parallel.tp
    micro = max(1, config.pretrain.micro_batch_size) * config.pretrain.seq_length
    size = 4 if full else 2
    layer = micro * model.hidden_size * (5 + 12 / tp) * size
    kept = layer * model.layers
    if config.pretrain.activation_checkpointing:
        kept = layer + micro * model.hidden_size * size * model.layers
    return kept + micro * 3 * 4 * _vocabulary(config) / tp


def _kept(config: Config) -> int:
    """Bytes kept for the backward pass of one micro-batch in fp32 on a CPU.

    About 17 numbers x hidden a token and layer, and heads x length of attention scores (arXiv 2205.05198, section 4.1);
    the logits three times: themselves, for the loss, their gradient.
    """
    model, length = config.model, config.pretrain.seq_length
    a_token = model.layers * (17 * model.hidden_size + model.heads * length) * 4 + 3 * 4 * _vocabulary(config)
    return max(1, config.pretrain.micro_batch_size) * length * a_token


def largest_micro_batch(config: Config, machines: Machines) -> int:
    """``pretrain.micro_batch_size=auto``: the largest that divides a process's share and whose estimate fits.

    1 where even that does not fit, or the memory is not known.
    """
    share = max(1, config.pretrain.global_batch_size // machines.data_parallel(config.parallel))
    best = 1
    for size in (size for size in range(1, share + 1) if share % size == 0):
        tried = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, micro_batch_size=size))
        if machines.memory and _memory(tried, machines) <= machines.memory * MARGIN:
            best = size
    return best


def _memory(config: Config, machines: Machines) -> int:
    return gpu_memory(config, machines) if machines.device == "cuda" else cpu_memory(config)


def _gpu_flops(name: str) -> tuple[float, float]:
    words = re.split(r"[^A-Za-z0-9]+", name)
    return next((value for part, value in GPU_FLOPS.items() if part in words), UNKNOWN_GPU_FLOPS)


def _vocabulary(config: Config) -> int:
    return padded_vocab_size(config.tokenizer.vocab_size, 128 * config.parallel.tp)
