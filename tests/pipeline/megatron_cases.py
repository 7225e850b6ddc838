"""Converts synthetic checkpoints in one process of the environment's Python and compares them with what they came from.

python megatron_cases.py FOLDER CASES  →  one JSON object: case to what came of it. CASES is JSON: a list of
``{"spec": {...}, "break": NAME or null, "limit": bytes or null}``.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import UcllmError
from pipeline.megatron_convert import SHARD_BYTES, open_checkpoint
from pipeline.megatron_verify import _computes, _differences

sys.path.insert(0, str(Path(__file__).parent))
fixture: Any = importlib.import_module("megatron_model")
torch: Any = importlib.import_module("torch")


class Evil:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (self.path, 0o755)


def change_state(step: Path, rank: int = 0, **values: Any) -> None:
    path = step / f"mp_rank_{rank:02d}_model_states.pt"
    torch.save({**torch.load(path, weights_only=False), **values}, path)


def change_layer(step: Path, name: str, **values: Any) -> None:
    content = torch.load(step / name, weights_only=True)
    torch.save({**content, **{key.replace("__", "."): each for key, each in values.items()}}, step / name)


LAYER = "layer_02-model_01-model_states.pt"


def evil_state(step: Path) -> None:
    change_state(step, rank=1, more=Evil(step.parent.parent / "pwned"))


def evil_layer(step: Path) -> None:
    torch.save({"weight": Evil(step.parent.parent / "pwned")}, step / LAYER)


def renamed_getattr(step: Path) -> None:
    class Sneaky:
        def __reduce__(self) -> tuple[Any, tuple[Any, str]]:
            return getattr, (fixture.ModelType, "__subclasses__")

    change_state(step, more=Sneaky())


def old_format(step: Path) -> None:
    torch.save({"args": 1}, step / "mp_rank_00_model_states.pt", _use_new_zipfile_serialization=False)


def cut(step: Path) -> None:
    for name in (LAYER, "mp_rank_01_model_states.pt"):
        content = (step / name).read_bytes()
        (step / name).write_bytes(content[: len(content) // 2])


def lost(step: Path) -> None:
    for name in (LAYER, "layer_04-model_00-model_states.pt", "mp_rank_01_model_states.pt"):
        (step / name).unlink()


def no_states(step: Path) -> None:
    for path in step.glob("mp_rank_*"):
        path.unlink()


def zero_3(step: Path) -> None:
    for path in [*step.glob("mp_rank_*"), *step.glob("layer_*")]:
        path.rename(path.with_name(f"zero_pp_rank_0_{path.name}")) if "mp_rank" in path.name else path.unlink()


def other_step(step: Path) -> None:
    change_state(step, rank=1, global_steps=10)


def renamed(step: Path) -> None:
    (step.parent / "latest").write_text("global_step500")
    step.rename(step.with_name("global_step500"))


def another_steps_layer(step: Path) -> None:
    change_layer(step, LAYER, input_layernorm__weight=torch.load(step / LAYER)["input_layernorm.weight"] + 1e-3)


def one_layer_more(step: Path) -> None:
    shutil.copy(step / "layer_04-model_00-model_states.pt", step / "layer_05-model_00-model_states.pt")


def another_shape(step: Path) -> None:
    change_layer(step, LAYER, mlp__dense_h_to_4h__bias=torch.zeros(7))


def another_weight(step: Path) -> None:
    change_layer(step, LAYER, self_attention__rotary=torch.zeros(7))


def not_numbers(step: Path) -> None:
    bias = torch.load(step / LAYER)["mlp.dense_h_to_4h.bias"]
    bias[3] = float("nan")
    change_layer(step, LAYER, mlp__dense_h_to_4h__bias=bias)


def no_weights(step: Path) -> None:
    change_state(step, module=None)


def latest_is_incomplete(step: Path) -> None:
    newer = step.with_name("global_step40")
    shutil.copytree(step, newer)
    (newer / LAYER).unlink()
    (step.parent / "latest").write_text(newer.name)
    shutil.copytree(step, step.with_name("global_step9"))


def only_files(step: Path) -> None:
    """The layout of a recipe's own run: the files lie in the folder itself."""
    for path in step.iterdir():
        path.rename(step.parent / path.name)
    step.rmdir()
    (step.parent / "latest").unlink()


def compare(source: Any, output: Path, reference: Path) -> dict[str, Any]:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    written: dict[str, Any] = {}
    files = sorted(output.glob("*.safetensors"))
    for path in files:
        written.update(load_file(path))
    wanted = load_file(reference / "model.safetensors")
    same = written.keys() == wanted.keys() and all(
        written[name].dtype == each.dtype and torch.equal(written[name], each) for name, each in wanted.items()
    )
    ids = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(3))
    one, other = (AutoModelForCausalLM.from_pretrained(folder).float().eval() for folder in (output, reference))
    with torch.no_grad():
        error = float((one(ids).logits - other(ids).logits).abs().max())
    checks = [*_differences(source.checkpoint, output), *([] if _computes(output) else ["not finite"])]
    # One bit of the last weight: what the check is for.
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return {
        "same": same,
        "error": error,
        "checks": checks,
        "files": len(files),
        "noticed": len(_differences(source.checkpoint, output)),
        "activation": source.config.activation_function,
        "tied": source.config.tie_word_embeddings,
        "step": source.checkpoint.step,
    }


def attempt(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    step = fixture.write(folder, fixture.Spec(**case["spec"]))
    if case["break"]:
        globals()[case["break"]](step)
    notes: list[str] = []
    try:
        source = open_checkpoint(folder / "run", notes.append)
        source.save_pretrained(folder / "out", case["limit"] or SHARD_BYTES)
        result = compare(source, folder / "out", folder / "run.reference")
    except UcllmError as error:
        result = {"problems": [[each.code, each.message, each.hint] for each in error.problems]}
    return {**result, "notes": notes, "pwned": (folder / "pwned").exists()}


if __name__ == "__main__":
    root, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps([attempt(root / str(number), case) for number, case in enumerate(cases)]))
