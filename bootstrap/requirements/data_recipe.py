"""``data.recipe``: the recipe's batch and parallel sizes divide, and its training fits into the memory (Step 2)."""

from __future__ import annotations

from bootstrap.facts import Facts, Recipe
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

_GB = 1e9


def check(profile: Profile, facts: Facts) -> Finding:
    """What does not divide fails, as the training would; an estimate of memory only warns."""
    recipe = facts.data.recipe
    if recipe is None:
        reason = facts.data.recipe_error or _("no recipe was read")
        return skipped(_("recipe {name} cannot be read: {reason}").format(name=profile.recipe, reason=reason))
    seen = [
        _(
            "recipe {name}: global batch {total}, micro batch {micro}, {gpus} processes, tensor-parallel {tensor}, "
            "pipeline-parallel {stages}, {layers} layers, {heads} heads, sequence {length}"
        ).format(
            name=recipe.name,
            total=recipe.global_batch,
            micro=recipe.micro_batch,
            gpus=recipe.gpus,
            tensor=recipe.tensor_parallel,
            stages=recipe.pipeline_parallel,
            layers=recipe.layers,
            heads=recipe.heads,
            length=recipe.sequence,
        )
    ]
    wrong = _undivided(recipe)
    if wrong:
        remedy = Remedy(_("Change the recipe, or these values with --set."))
        return fail(_("The sizes of recipe {name} do not divide.").format(name=recipe.name), [*seen, *wrong], remedy)
    divides = _("the sizes of {name} divide").format(name=recipe.name)
    if recipe.engine == "megatron-deepspeed":
        return ok(divides, *seen, _("memory is estimated when it is known on which machines it will run"))
    seen.append(_("training needs about {needed:.1f} GB of memory").format(needed=recipe.memory / _GB))
    if profile.on_gpu and "gpu" not in facts.collected:
        return ok(divides, *seen, _("the GPUs were not looked at"))
    place, memory = _memory(profile, facts)
    if memory is None:
        return unknown(_("How much memory training would have could not be read."), seen)
    seen.append(_("{place} has {memory:.1f} GB").format(place=place, memory=memory / _GB))
    if recipe.memory > memory:
        text = _("Lower pretrain.micro_batch_size, pretrain.seq_length or the model's size, or free memory.")
        return warn(_("Training may not fit into the memory."), seen, Remedy(text))
    return ok(divides, *seen)


def _undivided(recipe: Recipe) -> list[str]:
    """A sentence for each pair that does not divide."""
    split = recipe.tensor_parallel * recipe.pipeline_parallel
    copies = max(1, recipe.gpus // max(1, split))
    pairs = (
        (_("GPUs"), recipe.gpus, _("tensor x pipeline parallel"), split),
        (_("global batch"), recipe.global_batch, _("micro batch x copies of the model"), recipe.micro_batch * copies),
        (_("heads"), recipe.heads, _("tensor parallel"), recipe.tensor_parallel),
        (_("layers"), recipe.layers, _("pipeline parallel"), recipe.pipeline_parallel),
    )
    text = _("{what} {number} is no multiple of {by} {divisor}")
    return [
        text.format(what=what, number=number, by=by, divisor=divisor)
        for what, number, by, divisor in pairs
        if divisor < 1 or number % divisor or number < 1
    ]


def _memory(profile: Profile, facts: Facts) -> tuple[str, int | None]:
    """Where the training will lie and how many bytes it has there: the smallest GPU, a declared one, or the machine."""
    if not profile.on_gpu:
        return _("the machine"), facts.machine.memory_available
    sizes = [device.memory for device in facts.gpu.devices]
    known = [size for size in sizes if size is not None]
    if known and len(known) == len(sizes):
        return _("the GPU"), min(known)
    return _("the GPU"), round(profile.gpu.memory_gb * _GB) if profile.gpu and not sizes else None


REQUIREMENT = Requirement(
    "data.recipe",
    N_("Recipe fits"),
    N_("Sizes that do not divide end the training at its start; too little memory ends it in its first steps."),
    "2-1",
    check,
    # Not "gpu", though it looks there if another check did: on a CPU nobody should wait for a driver.
    reads=("data", "machine"),
)
