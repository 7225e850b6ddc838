"""``ucllm train STAGE|all``: gate, then steps 1 to 5."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bootstrap import __version__, requirements
from bootstrap.cli import machines, train_submit
from bootstrap.cli.base import LazyGroup, Report, common_options, finish, mirror_option
from bootstrap.cli.train_text import Terminal, render
from bootstrap.cli.work import Work, choose, open_work
from bootstrap.facts.access import huggingface
from bootstrap.findings import FAIL, UNKNOWN, Finding
from bootstrap.profiles import Profile
from pipeline.config import Config
from pipeline.engines.megatron_compat import VERSIONS
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import N_, _
from pipeline.launch import Machines
from pipeline.recipe import datasets as catalogue
from pipeline.recipe import resolve
from pipeline.runs import StagePlan
from pipeline.stages import BY_NAME, STAGES, Sources, module_of, required
from pipeline.train import Environment, StageFailed, StageResult, exit_code, launch, train

TABLE = {
    "all": ("", N_("All seven stages, skipping what is up to date.")),
    **{info.name: ("", info.title) for info in STAGES},
}


#: Stages that read one thing; the others read as many texts as there are.
ONE_INPUT = ("pretrain", "convert", "upload-pretrained", "finetune", "upload-finetuned")


#: Stages whose work an engine does, on other machines too.
ENGINE_STAGES = ("pretrain", "finetune")
#: The setting that names the repository each upload stage publishes to.
REPO_SETTING = {"upload-pretrained": "pretrained_repo", "upload-finetuned": "finetuned_repo"}


#: ``--engine`` of all stages together: the engine of fine-tuning that goes with that of pretraining.
GOES_WITH = {"torch": "trl", "megatron-deepspeed": "llm-jp-sft"}


class StageGroup(LazyGroup):
    """One command a stage, built from the stage's name."""

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a stage, or of all."""
        return stage_command(cmd_name) if cmd_name in self.table else None


@click.group(cls=StageGroup, commands_table=TABLE, help=_("Run steps 1 to 5 of the guide, or one stage of them."))
def command() -> None:
    """The group; its help is above, translated."""


class ManyInputs(click.Command):
    """Reads ``--input A B C`` as three inputs: stages have no positional arguments to confuse it with."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat ``--input`` before each further word, then parse as usual."""
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-") and len(word) > 1:
                option, _equals, value = word.partition("=")
                option = "" if value else option
                spread.append(word)
            elif option == "--input" and spread[-1] != "--input":
                spread += ["--input", word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


def _option(*names: str, text: str, **kwargs: Any) -> click.Option:
    return click.Option(names, help=text, **kwargs)


def _own_files(stage: str) -> list[click.Option]:
    """The options for files of one's own (DESIGN section 5)."""
    path = click.Path(path_type=Path)
    inputs = {
        "all": _("Texts to use instead of the recipe's: text or JSONL, plain or .gz."),
        "tokenizer": _("Texts: plain or JSONL, also .gz."),
        "corpus": _("Texts: plain or JSONL, also .gz."),
        "pretrain": _("A corpus: the PREFIX of PREFIX_text_document.bin and .idx."),
        "convert": _("A checkpoint: a model folder of `pretrain`, or a global_stepN folder or its parent."),
        "finetune": _("The base model: a folder, or a name on the Hub."),
    }.get(stage, _("The model folder."))
    found = [_option("--input", "inputs", text=inputs, multiple=True, metavar="PATH...")]
    if stage == "tokenizer":
        found.append(_option("--vocab-size", text=_("Number of pieces."), type=int))
    if stage in ("corpus", "pretrain", "convert"):
        found.append(_option("--tokenizer", text=_("A SentencePiece .model file."), type=path))
    if stage == "finetune":
        found.append(_option("--data", text=_("Instructions: JSONL with text, messages, or prompt and completion.")))
    if stage.startswith("upload"):
        found.append(_option("--repo", text=_("The Hub repository to publish to: NAME or USER/NAME.")))
        found.append(_option("--prompt", text=_("What the reloaded model must continue.")))
    if stage != "all":
        found.append(_option("--output", text=_("Where the result goes, instead of the run directory."), type=path))
    return found


def _machines() -> list[click.Option]:
    """Where a launch runs (DESIGN section 5)."""
    return [
        _option(
            "--cluster", text=_("Where it runs: a cluster's name, or a TOML file of your own."), metavar="NAME|FILE"
        ),
        _option("--nodes", text=_("Machines that train together."), type=click.IntRange(1)),
        _option("--gpus-per-node", text=_("GPUs, and so processes, on each."), type=click.IntRange(1)),
        _option(
            "--compat", text=_("Start what the published scripts of that version start."), type=click.Choice(VERSIONS)
        ),
        _option("--submit", text=_("Write a job script and hand it to the scheduler."), is_flag=True),
    ]


def stage_command(name: str) -> click.Command:
    """The command of one stage, or of all."""
    options: list[click.Parameter] = [
        _option("--recipe", text=_("A recipe's name, or a TOML file.")),
        _option("--engine", text=_("Who does the heavy work of pretrain or finetune.")),
        _option(
            "--set", "settings", text=_("Change one value: --set pretrain.steps=100."), multiple=True, metavar="A.B=C"
        ),
        *_own_files(name),
        *(_machines() if name in ("all", *ENGINE_STAGES) else []),
        _option(
            "--force", text=_("Run also what is up to date, and replace what lies where the result goes."), is_flag=True
        ),
        _option("--dry-run", text=_("Show exactly what would be started, and start nothing."), is_flag=True),
        _option("--no-checks", text=_("Start although a check fails; recorded in the manifest."), is_flag=True),
        _option("--yes", text=_("Never ask."), is_flag=True),
    ]

    def call(**values: Any) -> None:
        _train(name, values)

    title = _("Run all seven stages, skipping what is up to date.") if name == "all" else _(BY_NAME[name].title)
    built = ManyInputs(name, callback=call, params=options, help=title)
    return mirror_option(common_options(built))


def _configuration(stage: str, values: Mapping[str, Any], profile: Profile) -> Config:
    """The resolved configuration: recipe, ``--set``, then the command's own options."""
    overrides: dict[str, Any] = {}
    inputs = list(values["inputs"])
    if stage == "all" and inputs:
        overrides["data.input"] = inputs
        overrides["data.dataset"] = ""
    if values.get("vocab_size") is not None:
        overrides["tokenizer.vocab_size"] = values["vocab_size"]
    if values.get("data") is not None:
        overrides["finetune.data"] = values["data"]
    if values.get("prompt") is not None:
        overrides["upload.prompt"] = values["prompt"]
    if values.get("repo") is not None:
        overrides[f"upload.{REPO_SETTING[stage]}"] = values["repo"]
    overrides.update(_engines(stage, values["engine"]))
    if stage in ONE_INPUT and len(inputs) > 1:
        raise UcllmError(
            "usage",
            _("{stage} reads one --input, not {count}.").format(stage=stage, count=len(inputs)),
            hint=_("Run it once for each."),
        )
    own = bool(inputs) and stage != "all"
    recipe = values["recipe"] or ("" if own else profile.recipe)
    config = resolve(recipe, values["settings"], overrides)
    config.data.input = [str(Path(item).absolute()) for item in config.data.input]
    if config.finetune.data not in ("", "corpus", *catalogue()):
        config.finetune.data = str(Path(config.finetune.data).absolute())
    return config


def _engines(stage: str, engine: str | None) -> dict[str, str]:
    """What ``--engine`` means: the named stage's engine; for ``all``, pretraining's and the one that goes with it."""
    if not engine:
        return {}
    if stage == "all":
        return {"pretrain.engine": engine, **({"finetune.engine": GOES_WITH[engine]} if engine in GOES_WITH else {})}
    if stage in ENGINE_STAGES:
        return {f"{stage}.engine": engine}
    what = _("{stage} has no engines to choose from.").format(stage=stage)
    raise UcllmError("usage", what, hint=_("--engine is for pretrain, finetune and all."))


def _train(stage: str, values: dict[str, Any]) -> None:
    as_json = values["as_json"]
    names = [info.name for info in STAGES] if stage == "all" else [stage]
    choice = choose(values["workspace"], values["profile"], values["mirror"])
    config = _configuration(stage, values, choice.profile)
    work = open_work(f"train {stage}", choice, _wanted(names, values, choice.profile), config=config)
    where = machines.of(values, work, config)
    config = machines.resolved(config, where)
    plans = _plans(names, values, config, work, where)
    environment = Environment(work.workspace.python, work.workspace.state, __version__, values["no_checks"])
    if values["dry_run"]:
        finish(_dry_run(plans, environment, config, work, where), as_json=as_json, text=render)
    if values.get("submit"):
        finish(train_submit.submit(work, where, plans), as_json=as_json, text=render)
    if not values["no_checks"]:
        _refuse(stage, [*work.findings(), *machines.findings(work, where, plans)], values)
    machines.refuse(work, config, where, plans)
    if any(plan.launch for plan in plans):
        from bootstrap import activation

        environment = dataclasses.replace(environment, variables=activation.variables(work.workspace))
    terminal = Terminal(len(plans))
    if any(plan.launch and plan.stage == "pretrain" for plan in plans):
        terminal.say(machines.costs(config, where))
    try:
        _fetch_datasets(plans, work, terminal)
    except UcllmError as error:
        # The failure of the first stage, which would have read it.
        data, code = _data(stage, (), config), exit_code(plans[0].stage)
        finish(Report(f"train {stage}", "failed", code, data, error.problems), as_json=as_json, text=render)
    try:
        results = train(plans, environment, terminal, force=values["force"])
    except StageFailed as failure:
        terminal.close()
        data = _data(stage, failure.results, config)
        code = exit_code(failure.stage)
        finish(Report(f"train {stage}", "failed", code, data, failure.error.problems), as_json=as_json, text=render)
    except BaseException:
        terminal.close()
        raise
    else:
        terminal.close()
        data = _data(stage, results, config)
        finish(Report(f"train {stage}", "ok", 0, data), as_json=as_json, text=render)


def _plans(
    names: Sequence[str], values: Mapping[str, Any], config: Config, work: Work, where: Machines
) -> list[StagePlan]:
    """The plan of each stage. Raises :class:`UcllmError` with the problems of all of them at once."""
    from bootstrap import datasets

    dataset = datasets.path_of(config.data.dataset, work.workspace) if config.data.dataset else None
    own = tuple(values["inputs"]) if len(names) == 1 else ()
    sources = Sources(
        root=work.workspace.output / config.name,
        dataset=dataset,
        inputs=tuple(_absolute(item) for item in own),
        tokenizer=values.get("tokenizer") and values["tokenizer"].absolute(),
        output=values.get("output") and values["output"].absolute(),
        machines=where,
        datasets=datasets.paths(work.workspace),
        code=work.workspace.state / "code",
    )
    problems = machines.problems(names, config, where)
    plans: list[StagePlan] = []
    for name in names:
        publish = (
            name in REPO_SETTING and bool(getattr(config.upload, REPO_SETTING[name])) and bool(huggingface().source)
        )
        try:
            again = _again(name, names, values)
            mine = dataclasses.replace(sources, publish=publish, command=again)
            plans.append(module_of(name).plan(name, config, mine))
        except UcllmError as error:
            problems += error.problems
    if problems:
        raise UcllmError.of(problems)
    return plans


def _again(stage: str, names: Sequence[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The command that would publish what ``stage`` makes from what this call was given; ``{repo}`` is for the name."""
    program = "ucllm" if shutil.which("ucllm") or not sys.argv[0].endswith("ucllm") else sys.argv[0]
    # Texts given to `all` are the whole run's: a single stage could not name them.
    whole = len(names) > 1 and bool(values["inputs"])
    words = [program, "train", "all" if whole else stage]
    if values["inputs"]:
        words += ["--input", *(_absolute(item) for item in values["inputs"])]
    recipe = values["recipe"]
    if recipe:
        words += ["--recipe", str(Path(recipe).absolute()) if Path(recipe).is_file() else recipe]
    words += [word for item in values["settings"] for word in ("--set", item)]
    if values.get("prompt"):
        words += ["--prompt", values["prompt"]]
    if values["workspace"]:
        words += ["--workspace", str(values["workspace"].absolute())]
    return (*words, *(("--set", f"upload.{REPO_SETTING.get(stage)}={{repo}}") if whole else ("--repo", "{repo}")))


def _absolute(item: str) -> str:
    """A path made absolute. What is no file here and looks like ``user/model`` stays: it may be a name on the Hub."""
    return (
        str(Path(item).absolute())
        if Path(item).exists() or item.startswith((".", "/")) or item.count("/") > 1
        else item
    )


def _wanted(names: Sequence[str], values: Mapping[str, Any], profile: Profile) -> list[str]:
    """The checks of these stages, with all that those need."""
    ids = required(names, profile.requirements)
    if len(names) == 1 and values["inputs"]:
        ids -= {"data.corpus"}  # it is about the recipe's; a corpus of the user's own is checked by the stage
    return requirements.with_needs(ids, profile.requirements)


def _refuse(stage: str, findings: Sequence[Finding], values: Mapping[str, Any]) -> None:
    """Stop before anything starts when a check that the stage requires fails, or could not be made."""
    from bootstrap import runner

    code = runner.exit_code(findings)
    if code == 0:
        return
    problems = [
        Problem(f"check.{finding.id}", f"{finding.id}: {finding.summary}", hint=_help(finding, values["workspace"]))
        for finding in findings
        if finding.status in (FAIL, UNKNOWN)
    ]
    data = {"stages": [], "findings": [finding.as_json() for finding in findings]}
    report = Report(f"train {stage}", "refused", code, data, tuple(problems))
    finish(report, as_json=values["as_json"], text=render)


def _help(finding: Finding, workspace: Path | None) -> str:
    """The command that helps against a finding, or what to do by hand."""
    where = f" --workspace {shlex.quote(str(workspace.absolute()))}" if workspace else ""
    if finding.remedy is None:
        return _("See `ucllm doctor{where}`.").format(where=where)
    if finding.remedy.automatic:
        text = _("Repair with `ucllm doctor --fix{where}`, or make everything with `ucllm setup{where}`.")
        return text.format(where=where)
    return " ".join((finding.remedy.text, *(f"`{command}`" for command in finding.remedy.commands)))


def _fetch_datasets(plans: Sequence[StagePlan], work: Work, terminal: Terminal) -> None:
    """Fetch those of the catalogue's texts that a stage reads."""
    from bootstrap import datasets

    read = {path for plan in plans for path in plan.inputs.values()}
    for name, path in datasets.paths(work.workspace).items():
        if path in read:
            datasets.ensure(name, work.workspace, terminal.say)


def _dry_run(
    plans: Sequence[StagePlan], environment: Environment, config: Config, work: Work, where: Machines
) -> Report:
    """Exactly what would be started; for ``all``, of each stage."""
    from pipeline.estimate import estimate

    starts = []
    job = train_submit.files(work, where, plans)
    for plan in plans:
        start = plan.launch or launch(plan, environment)
        inputs = {name: str(path) for name, path in plan.inputs.items()}
        outputs = {name: str(path) for name, path in plan.outputs.items()}
        described = {"argv": list(start.argv), "env": dict(start.env), "files": {**start.files, **job}}
        starts.append(
            {"stage": plan.stage, "launch": described, "config": plan.config, "inputs": inputs, "outputs": outputs}
        )
    data: dict[str, Any] = {
        "stages": [],
        "plans": starts,
        "findings": [finding.as_json() for finding in work.findings()],
        "estimate": estimate(config, work.facts.machine.cores or 1, where),
    }
    if len(starts) == 1:
        data["launch"] = starts[0]["launch"]
    return Report(work.command, "planned", 0, data)


def _data(stage: str, results: Sequence[StageResult], config: Config) -> dict[str, Any]:
    return {
        "stages": [dataclasses.asdict(result) for result in results],
        "recipe": config.name,
        "complete": stage == "all" and len(results) == len(STAGES),
    }
