"""The workspace's corpora and the recipe's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrap import datasets
from bootstrap.facts import Corpus, DataFacts, Recipe
from bootstrap.facts.collect import Request
from bootstrap.workspace import Workspace
from pipeline import corpus as corpus_stage
from pipeline import indexed_dataset, runs
from pipeline.config import Config
from pipeline.errors import UcllmError
from pipeline.estimate import estimate
from pipeline.recipe import recipe_names, resolve
from pipeline.stages import Sources

#: The stage whose run directories are looked at.
STAGE = "corpus"


def collect(request: Request) -> DataFacts:
    """Read the corpora of all recipes, or of the training that is about to start, and its numbers."""
    output = request.workspace.output
    config, error = request.config, ""
    homes = [output / config.name / STAGE] if config else _homes(output)
    if config is None:
        try:
            config = resolve(request.profile.recipe)
        except UcllmError as failure:
            error = " ".join(problem.message for problem in failure.problems)
    found = [_corpus(home, request.workspace) for home in homes]
    recipe = _numbers(config) if config else None
    return DataFacts(tuple(item for item in found if item), recipe, error)


def _homes(output: Path) -> list[Path]:
    try:
        return sorted(folder / STAGE for folder in output.iterdir())
    except OSError:
        return []


def _corpus(home: Path, workspace: Workspace) -> Corpus | None:
    """What is in a run directory of the corpus stage; ``None`` if it did not end there."""
    manifest = runs.read_manifest(home)
    if manifest is None or manifest["stage"] != STAGE or not {"bin", "idx"} <= manifest["outputs"].keys():
        return None
    # The name alone: the workspace may have been moved since.
    name = Path(manifest["outputs"]["bin"]["path"]).name
    prefix = home / name.removesuffix(".bin")
    problems: tuple[str, ...] = ()
    error = ""
    try:
        problems = tuple(indexed_dataset.check(prefix))
    except OSError as failure:
        error = f"{failure.filename or prefix}: {failure.strerror or failure}"
    inputs = {key: Path(entry["path"]) for key, entry in manifest["inputs"].items()}
    tokenizer = inputs.get("tokenizer")
    return Corpus(
        home.parent.name,
        str(prefix),
        str(home),
        problems,
        _matches(tokenizer, manifest["inputs"]["tokenizer"]) if tokenizer else None,
        str(tokenizer or ""),
        tuple(str(path) for path in inputs.values() if not path.is_file()),
        _is_standard(home.parent.name, manifest["config"], inputs, workspace),
        error,
    )


def _matches(tokenizer: Path, recorded: Mapping[str, Any]) -> bool | None:
    """Whether the tokenizer is the recorded one; ``None`` if it cannot be read."""
    try:
        return bool(runs.describe(tokenizer, recorded)["sha256"] == recorded["sha256"])
    except OSError:
        return None


def _is_standard(recipe: str, made_with: Mapping[str, Any], inputs: Mapping[str, Path], workspace: Workspace) -> bool:
    """Whether the recipe of this name, as it is, makes what the manifest speaks of."""
    if recipe not in recipe_names():
        return False
    try:
        config = resolve(recipe)
        dataset = datasets.path_of(config.data.dataset, workspace) if config.data.dataset else None
        plan = corpus_stage.plan(STAGE, config, Sources(workspace.output / recipe, dataset))
    except UcllmError:
        return False
    return plan.config == made_with and plan.inputs == inputs


def _numbers(config: Config) -> Recipe:
    """The numbers that must fit each other, on as few processes as the model is cut for.

    A launch on more of them is judged before it starts (:func:`pipeline.engines.megatron.problems`).
    """
    costs = estimate(config)
    tensor, stages = config.parallel.tp, config.parallel.pp
    return Recipe(
        name=config.name,
        engine=config.pretrain.engine,
        global_batch=config.pretrain.global_batch_size,
        micro_batch=config.pretrain.micro_batch_size or 1,
        tensor_parallel=tensor,
        pipeline_parallel=stages,
        gpus=tensor * stages,
        heads=config.model.heads,
        layers=config.model.layers,
        sequence=config.pretrain.seq_length,
        memory=costs["memory_bytes"],
        disk=costs["disk_bytes"],
    )
