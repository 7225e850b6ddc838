"""Whether the folder that was written is the checkpoint: the same weights, and a model that computes with them.

Memory holds one layer of the model in fp32, however large the model and whatever its data type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import generate
from pipeline.i18n import _
from pipeline.megatron_checkpoint import Checkpoint
from pipeline.megatron_convert import weights

if TYPE_CHECKING:
    import torch

#: Tokens whose logits are looked at: enough for every weight to be used.
_TOKENS = 16


class _Weights(Mapping[str, Any]):
    """The tensors of a model folder by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._places: dict[str, Path] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                self._places.update(dict.fromkeys(tensors.keys(), path))

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._places[name], framework="pt") as tensors:
            found: torch.Tensor = tensors.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Fp32(_Weights):
    """The same in fp32, which every processor computes in, with the output that a tied model does not store."""

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = "transformer.wte.weight" if name == "lm_head.weight" and name not in self._places else name
        return super().__getitem__(stored).float()


def problems(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Sentences about what is wrong with ``folder``; none when it is the checkpoint, and its tokenizer is right."""
    found = _differences(checkpoint, folder)
    if not found and not _computes(folder):
        found.append(_("The model's output is not a number."))
    if found:
        return found
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return generate.tokenizer_problems(folder, generate.parity_texts(tokenizer))


def _differences(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Sentences about weights in ``folder`` that are not, bit for bit, those of the checkpoint."""
    import torch

    written = _Weights(folder)
    found, left = [], set(written)
    for name, tensor in weights(checkpoint):
        if name not in left:
            found.append(_("{name} was not written.").format(name=name))
            continue
        left.remove(name)
        if written[name].dtype != tensor.dtype or not torch.equal(written[name], tensor):
            found.append(_("{name} is not what the checkpoint holds.").format(name=name))
    return found + [_("{name} is not of the checkpoint.").format(name=name) for name in sorted(left)]


def _computes(folder: Path) -> bool:
    """Whether the logits are numbers, by transformers' own model; a weight is read when its layer runs."""
    import torch
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float32)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=True, weights_map=_Fp32(folder))
    ids = generate.windows(int(config.vocab_size), int(config.n_positions))[:1, :_TOKENS]
    return bool(torch.isfinite(generate.logits(model.eval(), ids)).all())
