"""Steps 3-2 and 5: a complete upload folder, tried as a stranger would, and pushed if a repository is named.

Two stages share this module: ``upload-pretrained`` tries the model with a plain prompt,
``upload-finetuned`` through its chat template. Nothing is sent before everything that can be checked has been.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hub
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.model_card import CardFacts, card_problems, model_card
from pipeline.model_folder import (
    CARD,
    COMPLETE,
    check_folder,
    check_weights,
    complete,
    copy_model,
    count_parameters,
    write_json,
)
from pipeline.provenance import check_unaltered, history, public
from pipeline.recipe import datasets
from pipeline.runs import StagePlan

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.stages import Sources

MANIFEST = "training_manifest.json"
#: Stands for the repository in :attr:`pipeline.stages.Sources.command`.
REPO = "{repo}"
_CATALOGUE_KEYS = ("title", "language", "license", "license_name", "homepage")
_STEPS = 5
#: What of the test goes to the manifest.
_REPORTED = ("sample", "new_tokens", "max_logit_error", "parity_texts", "versions")


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """Upload the recipe's own model, or ``--input MODEL_DIR``.

    A model of the user's own has its run directory beside those of the recipes, under its own name.
    """
    finetuned = stage == "upload-finetuned"
    settings = config.upload
    home, inputs, dataset = sources.home(stage), {}, {}
    if sources.inputs:
        inputs["model"] = Path(sources.inputs[0]).absolute()
        if sources.output is None:
            home = sources.root.parent / inputs["model"].name / stage
    else:
        inputs["model"] = sources.root / ("finetune" if finetuned else "convert") / "model"
        inputs["tokenizer"] = sources.root / "tokenizer" / "tokenizer.model"
        if config.data.dataset and not config.data.input:  # the user's own text comes first: texts.chosen
            entry = datasets().get(config.data.dataset, {})
            dataset = {"name": config.data.dataset, **{key: entry[key] for key in _CATALOGUE_KEYS if key in entry}}
    if sources.tokenizer is not None:
        inputs["tokenizer"] = sources.tokenizer.absolute()
    repo = settings.finetuned_repo if finetuned else settings.pretrained_repo
    values = {
        "repo": repo,
        "publish": sources.publish and bool(repo),
        "prompt": settings.prompt,
        "private": settings.private,
        "license": settings.license,
        "base_model": settings.pretrained_repo if finetuned else "",
        "own_model": bool(sources.inputs),
        "title": inputs["model"].name if sources.inputs else config.name,
        "dataset": dataset,
    }
    output = sources.output.absolute() if sources.output else home / "upload"
    own = ("--input", str(inputs["model"])) if sources.inputs else ("--recipe", config.name)
    command = sources.command or ("ucllm", "train", stage, *own, "--repo", REPO)
    return StagePlan(stage, home, values, inputs, {"folder": output}, run={"command": list(command)})


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Write the folder, try it, push it. Raises :class:`UcllmError`; nothing was sent then, or the Hub said why not."""
    config, folder, model = job.config, job.outputs["folder"], job.inputs["model"]
    check_folder(model)
    check_weights(model)
    check_unaltered(model)
    repo, base_model = str(config["repo"]), str(config["base_model"])
    if config["publish"]:
        user = hub.sign_in(repo, report.note)
        repo, base_model = hub.full_name(repo, user), hub.full_name(base_model, user)
    report.progress(1, _STEPS, "steps")

    copy_model(model, folder)
    if "tokenizer" in job.inputs:
        shutil.copyfile(job.inputs["tokenizer"], folder / "tokenizer.model")
    complete(folder, model)
    stages = [public(manifest) for manifest in history(model)]
    if stages:
        write_json(folder / MANIFEST, {"stages": stages})
    report.progress(2, _STEPS, "steps")

    base_model = next((hub_model(stage) for stage in stages if hub_model(stage)), base_model)
    chat = job.stage == "upload-finetuned"
    result = reload(folder, model, str(config["prompt"]), chat)
    _tell(result, chat, report)
    report.progress(3, _STEPS, "steps")

    if config["own_model"] and (model / CARD).is_file():
        shutil.copyfile(model / CARD, folder / CARD)
        report.note(_("The model card is your own: the folder holds a README.md."))
    else:
        card = model_card(
            CardFacts(
                title=repo.rsplit("/", 1)[-1] or str(config["title"]),
                repo=repo,
                chat=bool(result["chat"]),
                license=str(config["license"]),
                base_model=base_model if "/" in base_model else "",
                prompt=str(config["prompt"]),
                sample=str(result["sample"]),
                parameters=count_parameters(folder),
                shape=json.loads((folder / "config.json").read_text(encoding="utf-8")),
                dataset=config["dataset"],
                stages=stages,
            )
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    problems = [*card_problems((folder / CARD).read_text(encoding="utf-8", errors="replace")), *verify(job)]
    if problems:
        raise UcllmError.of([Problem("upload.incomplete", text) for text in problems])
    report.progress(4, _STEPS, "steps")

    outcome = _push(job, repo, report) if config["publish"] else _how_to_publish(job, report)
    report.progress(_STEPS, _STEPS, "steps")
    return {**{key: result[key] for key in _REPORTED}, **outcome}


def hub_model(stage: Mapping[str, Any]) -> str:
    """The Hub id of the model that a fine-tuning started from, without its revision; empty when it was not there."""
    return str(stage["config"].get("hub_model", "")).partition("@")[0]


def _push(job: Job, repo: str, report: Reporter) -> dict[str, Any]:
    message = "Upload model with ucllm"
    folder, private = job.outputs["folder"], bool(job.config["private"])
    pushed = hub.push(folder, repo, private=private, message=message, note=report.note)
    if not pushed.changed:
        report.note(_("{repo} held all of it already: no new commit.").format(repo=repo))
    return {"pushed": True, "repo": repo, "url": pushed.url, "commit": pushed.commit, "new_commit": pushed.changed}


def _how_to_publish(job: Job, report: Reporter) -> dict[str, Any]:
    from huggingface_hub import get_token

    repo = str(job.config["repo"]) or "NAME"
    command = shlex.join([word.replace(REPO, repo) for word in job.config["run"]["command"]])
    text = _("Nothing was published. To publish it: `{command}`.").format(command=command)
    if not get_token():
        text += " " + _("Log in first: `hf auth login`.")
    report.note(text)
    return {"pushed": False, "publish_command": command}


def reload(folder: Path, reference: Path, prompt: str, chat: bool) -> dict[str, Any]:
    """:func:`pipeline.generate.check` in a fresh process. Raises :class:`UcllmError` for all that it finds wrong."""
    argv = [sys.executable, "-m", "pipeline.generate", str(folder), f"--prompt={prompt}", "--reference", str(reference)]
    # A stranger's view: what is not in the folder is not there, and no login helps.
    env = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    argv += ["--chat"] if chat else []
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    what = _("The model was written but failed its test; nothing was published.")
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        why = _("Loading it in a fresh process ended with exit code {code}: {text}").format(
            code=done.returncode, text="".join(last)
        )
        raise UcllmError("generation.failed", what, why) from None
    if result["problems"]:
        raise UcllmError.of([Problem("generation.failed", what, text) for text in result["problems"]])
    return result


def _tell(result: Mapping[str, Any], chat: bool, report: Reporter) -> None:
    if result["parity_texts"] is None:
        report.note(
            _("The tokenizer was not compared with SentencePiece: the folder holds no unigram tokenizer.model.")
        )
    if chat and not result["chat"]:
        report.note(_("The prompt was used as it is: the tokenizer has no chat template."))
    if result["new_tokens"] <= 1:
        report.note(_("The model ended its text at once; another `--prompt` may show more of it."))


def verify(job: Job) -> list[str]:
    """The folder is complete, and holds neither a token nor the place of the run on this machine."""
    from huggingface_hub import get_token

    folder = job.outputs["folder"]
    problems = [_("{name} is missing.").format(name=name) for name in COMPLETE if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        problems.append(_("{name} is missing.").format(name="model.safetensors"))
    secrets = [text for text in (get_token(), str(job.home.parent)) if text]
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".md", ".jinja") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(secret in text for secret in secrets):
                problems.append(_("{name} holds a private path or a token.").format(name=path.name))
    return problems
