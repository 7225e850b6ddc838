"""The seven stages in order, with the checks each needs and the exit code of its failure.

Importing this module loads no stage: the tool plans with all of them, a stage process runs one.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.i18n import N_
from pipeline.runs import StagePlan

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.launch import Machines


#: What every stage runs in.
ENVIRONMENT = ("env.*",)
#: What computes: a stage that trains must not find out in its first step that the GPU is not there.
DEVICE = ("machine.driver", "machine.gpu*")


@dataclass(frozen=True)
class StageInfo:
    """A stage's name on the command line, its module, what it is in one line, and the rules around it."""

    name: str
    module: str
    title: str
    #: Exit code when it fails (DESIGN section 5).
    exit_code: int
    #: The doctor's checks that must pass before it starts, as patterns. Those that a profile does not list do not
    #: count. Logins are nobody's: what cannot be published is still made and checked.
    requires: tuple[str, ...] = ENVIRONMENT
    #: The checks that it makes true: a later stage of the same call need not find them so.
    provides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Where a stage's files are: the recipe's run directories, or files of the user's own.

    ``root`` is ``<workspace>/output/<recipe>``. ``inputs`` are the files given with ``--input`` (texts, a checkpoint, a
    model folder or a Hub name), ``tokenizer`` and ``output`` the options of the same names, ``dataset`` the file of the
    recipe's dataset. Empty or ``None`` means: the recipe's own.
    """

    root: Path
    dataset: Path | None = None
    inputs: tuple[str, ...] = ()
    tokenizer: Path | None = None
    output: Path | None = None
    publish: bool = False
    #: Where an engine's processes would run; ``None`` on this machine, as one process.
    machines: Machines | None = None
    #: The files of the catalogue's datasets, by name.
    datasets: Mapping[str, Path] = field(default_factory=dict)
    #: ``<workspace>/.ucllm/code``: what stages have on their path.
    code: Path = Path()
    #: How the user would call this stage again, with ``{repo}`` for a repository; shown where one is missing.
    command: tuple[str, ...] = ()

    def home(self, stage: str) -> Path:
        """The run directory: ``root/STAGE``, or ``OUTPUT.ucllm/STAGE`` beside an output of the user's own."""
        root = self.output.with_name(self.output.name + ".ucllm") if self.output else self.root
        return root / stage


class StageModule(Protocol):
    """What a stage's module provides."""

    def plan(self, stage: str, config: Config, sources: Sources) -> StagePlan:
        """What would be done, without reading or writing anything, and without heavy imports."""

    def run(self, job: Job, report: Reporter) -> dict[str, Any]:
        """Do it, in the environment's Python, writing only to ``job.outputs`` and ``job.checkpoints``.

        Returns the metrics for the manifest. Raises :class:`pipeline.errors.UcllmError` for what a user can mend.
        """

    def verify(self, job: Job) -> list[str]:
        """Look at what was written as a stranger would; returns what is wrong with it."""


STAGES: tuple[StageInfo, ...] = (
    StageInfo("tokenizer", "pipeline.tokenizer", N_("Train the tokenizer"), 11),
    StageInfo("corpus", "pipeline.corpus", N_("Tokenize the corpus"), 12, provides=("data.corpus",)),
    StageInfo(
        "pretrain",
        "pipeline.pretrain",
        N_("Pretrain the model"),
        12,
        requires=(
            *ENVIRONMENT,
            *DEVICE,
            "machine.compiler",  # Megatron compiles its helpers and kernels as it starts
            "machine.shm",
            "machine.port",
            "machine.interfaces",
            "ops.*",
            "source.megatron",
            "build.*",
            "data.recipe",
            "data.corpus",
        ),
    ),
    StageInfo(
        "convert", "pipeline.convert", N_("Convert to Hugging Face"), 13, requires=(*ENVIRONMENT, "source.megatron")
    ),
    StageInfo("upload-pretrained", "pipeline.upload", N_("Check and upload the pretrained model"), 13),
    StageInfo(
        "finetune",
        "pipeline.finetune",
        N_("Fine-tune the model"),
        14,
        requires=(*ENVIRONMENT, *DEVICE, "ops.flash-attn", "source.llm-jp-sft"),
    ),
    StageInfo("upload-finetuned", "pipeline.upload", N_("Check and upload the fine-tuned model"), 15),
)

BY_NAME: Mapping[str, StageInfo] = {info.name: info for info in STAGES}


def required(stages: Sequence[str], listed: Sequence[str]) -> set[str]:
    """Those of the ``listed`` checks that must pass before ``stages`` run in this order."""
    found: set[str] = set()
    provided: set[str] = set()
    for info in (BY_NAME[name] for name in stages):
        wanted = {item for item in listed for pattern in info.requires if fnmatch.fnmatchcase(item, pattern)}
        found |= wanted - provided
        provided |= set(info.provides)
    return found


def module_of(stage: str) -> StageModule:
    """The module of a stage. The two upload stages share one, which tells them apart by ``job.stage``."""
    return cast("StageModule", importlib.import_module(BY_NAME[stage].module))
