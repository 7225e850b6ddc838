"""What the engines' Trainers send to Weights & Biases: the Trainer's own report, told by variables where it goes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UcllmError
from pipeline.i18n import _


def missing_package(code: str, setting: str, package: str, hint: str) -> UcllmError:
    """The refusal of ``setting`` (such as ``wandb.mode=offline``) because ``package`` is not in the environment.

    ``hint`` says how to do without; how to install is said here.
    """
    install = _("Install it: `{command}`.").format(command=f"{sys.executable} -m pip install {package}")
    return UcllmError(
        code,
        _("{setting} needs the package {package}.").format(setting=setting, package=package),
        _("It is not in the environment of this profile."),
        f"{install} {hint}",
    )


def report_to(settings: Mapping[str, Any], home: Path, stage: str) -> str:
    """The ``report_to`` of ``TrainingArguments`` for the table ``wandb`` of the configuration; ``none`` when it is off.

    Sets the variables by which wandb's client knows its mode, entity, project, and that its files belong into
    ``home``. The key is not among them: the client finds it itself. Raises :class:`UcllmError` without the package.
    """
    mode = settings.get("mode", "off")
    if mode == "off":
        return "none"
    if importlib.util.find_spec("wandb") is None:
        raise missing_package("wandb.missing", f"wandb.mode={mode}", "wandb", _("Or use `--set wandb.mode=off`."))
    # A run that is continued is another one to wandb; the group holds them together.
    os.environ.update(variables(settings, run_name(home, stage), home))
    return "wandb"


def variables(settings: Mapping[str, Any], group: str, home: Path) -> dict[str, str]:
    """The variables by which wandb's client knows what it logs to, from the table ``wandb``; never the key."""
    if settings["mode"] == "off":
        return {"WANDB_MODE": "disabled"}
    found = {"WANDB_MODE": settings["mode"], "WANDB_RUN_GROUP": group, "WANDB_DIR": str(home)}
    return found | {f"WANDB_{key.upper()}": settings[key] for key in ("entity", "project") if settings.get(key)}


def run_name(home: Path, stage: str) -> str:
    """``STAGE_RECIPE``; at most 128 characters, which is what wandb takes for a group."""
    return f"{stage}_{home.parent.name}"[:128]


@contextlib.contextmanager
def refusals_are_named(used: bool) -> Iterator[None]:
    """Give what wandb's client refuses (no key, no network, no such project) the form of our errors."""
    if not used:
        yield
        return
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise UcllmError(
            "wandb.refused",
            _("Weights & Biases did not take the run."),
            str(error).strip().partition("\n")[0],
            _("Log in with `wandb login` or set WANDB_API_KEY, or use `--set wandb.mode=offline`."),
        ) from error
