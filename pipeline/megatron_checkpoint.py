"""Find and read a checkpoint of Megatron-DeepSpeed: which files it must have, what it was trained with, its weights.

A folder ``global_stepN`` holds one ``layer_NN-model_TT-model_states.pt`` for each layer of the pipeline and each
tensor-parallel rank, and one ``mp_rank_NN_model_states.pt`` for each model-parallel rank, with the run's arguments.
Without pipeline parallelism (``--no-pipeline-parallel``) the latter hold the weights too: there are no layer files.
ZeRO's files beside them (``zero_pp_rank_*``) are optimizer states and not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import safe_pickle
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _

_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_EXPERT = re.compile(r"layer_\d+_expert_\d+_.*\.pt")
_STATE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO_3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_STEP = re.compile(r"global_step(\d+)")
#: Layer files begin with 1: place 0 in the pipeline is a cast to half precision, which has no weights
#: (``GPTModelPipe`` in ``megatron/model/gpt_model.py``).
_FIRST = 1
#: The arguments that no checkpoint lacks.
_SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size")
#: What an earlier checkpoint of the same run may not suffer from.
_PASSING = frozenset({"checkpoint.incomplete", "checkpoint.damaged", "checkpoint.mixed"})

#: The weights of one layer on one tensor-parallel rank, under the names of the layer files.
Shard = Mapping[str, Any]


@dataclass
class Checkpoint:
    """One step of a run. ``arguments`` are Megatron's; ``problems`` say why it cannot be used, all of them."""

    folder: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Of Megatron's format; query, key and value lie in another order before 2.0.
    version: float = 0.0
    step: int = 0
    #: Ids that the tokenizer of the training had, with those that Megatron adds; 0 when it is not recorded.
    original_vocab_size: int = 0
    problems: list[Problem] = field(default_factory=list)
    #: For each layer of the pipeline in order, one file a tensor-parallel rank; empty without pipeline parallelism.
    layer_files: Sequence[Sequence[Path]] = ()
    #: Without pipeline parallelism: the weights, for each tensor-parallel rank.
    modules: Sequence[Mapping[str, Any]] = ()

    @property
    def tp(self) -> int:
        """Into how many parts every layer is cut."""
        return int(self.arguments.get("tensor_model_parallel_size") or 1)

    @property
    def layers(self) -> int:
        """The number of transformer layers."""
        return int(self.arguments["num_layers"])

    @property
    def tied(self) -> bool:
        """Whether the output uses the word embeddings."""
        return not self.arguments.get("untie_embeddings_and_output_weights", False)

    def parts(self) -> Iterator[tuple[str, Sequence[Shard]]]:
        """``(name, shards)`` of embeddings, layers, the last norm and an untied output, one in memory at a time.

        Raises :class:`UcllmError` for a file that is damaged.
        """
        if self.modules:
            yield from self._parts_of_modules()
        for paths in self.layer_files:
            yield paths[0].name.partition("-")[0], [safe_pickle.load_tensors(path) for path in paths]

    def _parts_of_modules(self) -> Iterator[tuple[str, Sequence[Shard]]]:
        """What ``state_dict_for_save_checkpoint`` of ``megatron/model/language_model.py`` nests, as in layer files."""
        models = [module.get("language_model", {}) for module in self.modules]
        encoders = [model.get("encoder", {}) for model in models]
        yield "embedding", [_flat(model.get("embedding", {})) for model in models]
        for index in range(self.layers):
            yield f"layers.{index}", [_below(encoder, f"layers.{index}.") for encoder in encoders]
        yield "final_layernorm", [_below(encoder, "final_layernorm.") for encoder in encoders]
        if not self.tied:
            yield "output_layer", [_flat({"lm_head": model.get("output_layer", {})}) for model in models]


def _flat(nested: Mapping[str, Any]) -> Shard:
    """``{"a": {"b": x}}`` as ``{"a.b": x}``."""
    return {
        f"{outer}.{inner}": each
        for outer, content in nested.items()
        if isinstance(content, Mapping)
        for inner, each in content.items()
    }


def _below(content: Mapping[str, Any], prefix: str) -> Shard:
    return {name[len(prefix) :]: each for name, each in content.items() if name.startswith(prefix)}


def is_megatron(folder: Path) -> bool:
    """Whether ``folder`` is, or holds, something that Megatron-DeepSpeed saved."""
    return bool(_is_step(folder) or _steps(folder))


def _is_step(folder: Path) -> bool:
    patterns = (_LAYER, _EXPERT, _STATE, _ZERO_3)
    return any(pattern.fullmatch(name) for name in _names(folder) for pattern in patterns)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _steps(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``: the one that its file ``latest`` names first, then the newest first."""
    numbers = {name: int(match[1]) for name in _names(folder) if (match := _STEP.fullmatch(name))}
    tag = folder / "latest"
    latest = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
    names = sorted(numbers, key=lambda name: (name != latest, -numbers[name]))
    return [folder / name for name in names if (folder / name).is_dir()]


def find(folder: Path, note: Callable[[str], None]) -> Checkpoint:
    """Read ``folder``, or the newest whole checkpoint in it: the one that ``latest`` names, else the highest step.

    ``note`` is told which one, and what is wrong with those that were passed over. When none is whole the result is the
    first of them, with its ``problems``.
    """
    if _is_step(folder):
        return read(folder)
    found = [folder] if not _steps(folder) else _steps(folder)
    passed: list[Checkpoint] = []
    for path in found:
        checkpoint = read(path)
        if not checkpoint.problems or any(each.code not in _PASSING for each in checkpoint.problems):
            for each in passed:
                text = _("{path} is passed over: {why}")
                note(text.format(path=each.folder, why=" ".join(problem.message for problem in each.problems)))
            note(_("Checkpoint: {path}").format(path=path))
            return checkpoint
        passed.append(checkpoint)
    return passed[0]


def read(folder: Path) -> Checkpoint:
    """Read what the run recorded and look whether every file is there and whole. Weights are not read yet."""
    names = _names(folder)
    ranks = {int(match[1]): folder / name for name in names if (match := _STATE.fullmatch(name))}
    checkpoint = Checkpoint(folder)
    if any(_ZERO_3.fullmatch(name) for name in names) and not ranks:
        checkpoint.problems = [
            Problem(
                "checkpoint.zero-3",
                _("{path} was saved by ZeRO stage 3.").format(path=folder),
                _("There every GPU keeps a piece of each weight, and no file holds a whole one."),
                _("Run the `zero_to_fp32.py` that DeepSpeed put beside it, or train with `--set parallel.zero=2`."),
            )
        ]
        return checkpoint
    states: dict[int, Mapping[str, Any]] = {}
    for rank, path in sorted(ranks.items()):
        try:
            states[rank] = _state(path)
        except UcllmError as error:
            checkpoint.problems += error.problems
    layers = {(int(match[1]), int(match[2])): folder / name for name in names if (match := _LAYER.fullmatch(name))}
    checkpoint.problems += _damaged(layers.values())
    if not ranks:
        checkpoint.problems.append(_missing(folder, ["mp_rank_00_model_states.pt"]))
    if not states:
        return checkpoint

    first = states[min(states)]
    checkpoint.arguments = vars(first["args"])
    checkpoint.version = float(first.get("checkpoint_version") or 0.0)
    checkpoint.step = int(first.get("global_steps") or first.get("iteration") or 0)
    recorded = first.get("universal_checkpoint_info") or {}
    checkpoint.original_vocab_size = int(recorded.get("original_vocab_size") or 0)
    checkpoint.problems += _mixed(folder, {ranks[rank]: state for rank, state in states.items()})
    _take_files(checkpoint, ranks, layers)
    if not layers and not checkpoint.problems:
        modules = [states[rank].get("module") for rank in sorted(states)]
        checkpoint.modules = [each for each in modules if isinstance(each, Mapping)]
        if len(checkpoint.modules) != len(modules):
            checkpoint.problems.append(_missing(folder, ["layer_01-model_00-model_states.pt"]))
    return checkpoint


def _state(path: Path) -> Mapping[str, Any]:
    """A ``mp_rank`` file. Raises :class:`UcllmError` when it cannot be read or has no arguments."""
    state = safe_pickle.load(path)
    arguments = getattr(state.get("args"), "__dict__", {}) if isinstance(state, Mapping) else {}
    if not all(isinstance(arguments.get(name), int) for name in _SHAPE):
        raise safe_pickle.damaged(path, _("It does not say with what arguments the model was trained."))
    return dict(state)


def _damaged(paths: Iterable[Path]) -> list[Problem]:
    problems: list[Problem] = []
    for path in paths:
        try:
            safe_pickle.check_archive(path)
        except UcllmError as error:
            problems += error.problems
    return problems


def _take_files(checkpoint: Checkpoint, ranks: Mapping[int, Path], layers: Mapping[tuple[int, int], Path]) -> None:
    """Hold the files against the arguments: ``layer_files`` and, for what is missing or too much, ``problems``."""
    arguments, tp = checkpoint.arguments, checkpoint.tp
    pp = int(arguments.get("pipeline_model_parallel_size") or 1)
    # Embeddings, the layers, the last norm; an output of its own comes last.
    last = _FIRST + 1 + checkpoint.layers + (0 if checkpoint.tied else 1)
    wanted = [(layer, rank) for layer in range(_FIRST, last + 1) for rank in range(tp)] if layers else []
    missing = [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(tp * pp) if rank not in ranks]
    missing += [
        f"layer_{layer:02d}-model_{rank:02d}-model_states.pt" for layer, rank in wanted if (layer, rank) not in layers
    ]
    if missing:
        checkpoint.problems.append(_missing(checkpoint.folder, missing))
    extra = [path.name for key, path in sorted(layers.items()) if key not in wanted]
    extra += [path.name for rank, path in sorted(ranks.items()) if rank >= tp * pp]
    if extra:
        text = _("The run had {layers} layers, tensor parallelism {tp} and pipeline parallelism {pp}.")
        checkpoint.problems.append(
            Problem(
                "checkpoint.mixed",
                _("{path} has files that do not belong to it: {names}.").format(
                    path=checkpoint.folder, names=_short(extra)
                ),
                text.format(layers=checkpoint.layers, tp=tp, pp=pp),
                _("Move the files of the other run away, or copy the checkpoint again into an empty folder."),
            )
        )
    if not missing:
        checkpoint.layer_files = [
            [layers[layer, rank] for rank in range(tp)] for layer in range(_FIRST, last + 1) if layers
        ]


def _missing(folder: Path, names: Sequence[str]) -> Problem:
    return Problem(
        "checkpoint.incomplete",
        _("{path} is not a whole Megatron-DeepSpeed checkpoint.").format(path=folder),
        _("It lacks {names}.").format(names=_short(names)),
        _("Copy it again from where it came from, or name an earlier checkpoint: `--input DIR/global_stepN`."),
    )


def _mixed(folder: Path, states: Mapping[Path, Mapping[str, Any]]) -> list[Problem]:
    """Whether the files say that they are of different steps, or of another one than the folder's name."""
    steps = {path.name: int(state.get("global_steps") or state.get("iteration") or 0) for path, state in states.items()}
    named = _STEP.fullmatch(folder.name)
    if named:
        steps = {folder.name: int(named[1]), **steps}
    if len(set(steps.values())) < 2:
        return []
    return [
        Problem(
            "checkpoint.mixed",
            _("{path} mixes files of different steps.").format(path=folder),
            ", ".join(f"{name}: {step}" for name, step in steps.items()) + ".",
            _("Copy the checkpoint again into an empty folder, or name another: `--input DIR/global_stepN`."),
        )
    ]


def _short(names: Sequence[str]) -> str:
    """The names in one line: the first eight, and how many more."""
    more = len(names) - 8
    return ", ".join(names[:8]) + (_(" and {count} more").format(count=more) if more > 0 else "")
