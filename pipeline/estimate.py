"""What a pretraining costs, from the configuration alone: nothing is read and nothing measured.

An estimate warns and never refuses. Each constant says where it comes from.
"""

from __future__ import annotations

import dataclasses
import math
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
#: Dense 16-bit tensor operations a second: NVIDIA's data sheets of the L4, A100, H100 (SXM).
GPU_FLOPS = {"L4": 1.21e14, "A100": 3.12e14, "H100": 9.89e14, "H200": 9.89e14, "V100": 1.25e14}
#: The share of it that Megatron-DeepSpeed reaches on small models, from the guide's own figure: 300 billion tokens of
#: the 0.125B model in 61 to 85 days on one L4 are 25 to 35 %.
GPU_UTILIZATION = 0.3
#: Of a GPU that is not in the table.
UNKNOWN_GPU_FLOPS = 1e14
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
        seconds = flops(config) / (_gpu_flops(machines.cluster.gpu) * GPU_UTILIZATION * machines.world_size)
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
    return LIBRARIES_BYTES + parameters(config) * torch_engine.MEMORY_PER_PARAMETER + _kept(config, 4, flash=False)


def gpu_memory(config: Config, machines: Machines) -> int:
    """The peak of the GPU that holds most, in bytes: weights, gradients, optimizer, activations.

    Mixed precision keeps 2 bytes of weights, 2 of gradients and 12 of the optimizer a parameter (ZeRO, arXiv
    1910.02054, section 3.1), which ZeRO's stages share from the optimizer on.
    """
    parallel = config.parallel
    split = parallel.tp * parallel.pp
    shared = max(1, machines.world_size // split)
    full = config.pretrain.precision == "fp32"
    state = (4, 4, 8) if full else (2, 2, 12)
    of_weights, of_gradients, of_optimizer = (
        size / (shared if parallel.zero >= stage else 1) for size, stage in zip(state, (3, 2, 1))
    )
    # The first stage of a pipeline holds the embeddings and as many micro-batches as there are stages.
    hidden, layers = config.model.hidden_size, config.model.layers
    embeddings = (_vocabulary(config) + config.pretrain.seq_length) * hidden
    share = (parameters(config) - embeddings) / split + embeddings / parallel.tp
    activations = _kept(config, 4 if full else 2, flash=True) / parallel.tp
    if config.pretrain.activation_checkpointing:
        micro = config.pretrain.micro_batch_size * config.pretrain.seq_length
        activations = activations / layers + 2 * micro * hidden * layers
    return round(CONTEXT_BYTES + share * (of_weights + of_gradients + of_optimizer) + activations)


def _kept(config: Config, size: int, *, flash: bool) -> int:
    """Bytes kept for the backward pass of one micro-batch.

    About 17 numbers x hidden a token and layer, and heads x length of attention scores, which flash attention does not
    keep (arXiv 2205.05198, section 4.1); the logits three times: themselves, in fp32 for the loss, their gradient.
    """
    model, length = config.model, config.pretrain.seq_length
    scores = 0 if flash else model.heads * length
    a_token = model.layers * (17 * model.hidden_size + scores) * size + 3 * 4 * _vocabulary(config)
    return max(1, config.pretrain.micro_batch_size) * length * a_token


def largest_micro_batch(config: Config, machines: Machines) -> int:
    """``pretrain.micro_batch_size=auto``: the largest that divides a process's share and whose estimate fits.

    1 where even that does not fit, or the memory is not known.
    """
    data_parallel = max(1, machines.world_size // (config.parallel.tp * config.parallel.pp))
    share = max(1, config.pretrain.global_batch_size // data_parallel)
    best = 1
    for size in (size for size in range(1, share + 1) if share % size == 0):
        tried = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, micro_batch_size=size))
        if machines.memory and _memory(tried, machines) <= machines.memory * MARGIN:
            best = size
    return best


def _memory(config: Config, machines: Machines) -> int:
    return gpu_memory(config, machines) if machines.device == "cuda" else cpu_memory(config)


def _gpu_flops(name: str) -> float:
    return next((value for part, value in GPU_FLOPS.items() if part.lower() in name.lower()), UNKNOWN_GPU_FLOPS)


def _vocabulary(config: Config) -> int:
    return padded_vocab_size(config.tokenizer.vocab_size, 128 * config.parallel.tp)
