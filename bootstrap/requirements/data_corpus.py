"""``data.corpus``: each corpus is whole, and was made by the tokenizer that lies there now (Step 2)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrap import __version__
from bootstrap.facts import Corpus, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline import runs
from pipeline import train as training
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Sound files and the right tokenizer, for every corpus that a run finished."""
    looked = _("looked for finished corpora in {path}").format(path=Path(facts.workspace) / "output")
    corpora = facts.data.corpora
    if not corpora:
        return skipped(_("none yet"), looked)
    seen = [looked, *(line for corpus in corpora for line in _describe(corpus))]
    bad = [corpus for corpus in corpora if is_bad(corpus)]
    if bad:
        summary = _("The corpus of {names} cannot be trained on.")
        return fail(summary.format(names=", ".join(item.recipe for item in bad)), seen, _remedy(bad, facts))
    unclear = [corpus for corpus in corpora if corpus.error or corpus.tokenizer_matches is None]
    if unclear:
        summary = _("The corpus of {names} could not be compared with its tokenizer.")
        text = _("Make the tokenizer again, or say which one it is: `ucllm train corpus --tokenizer MODEL`.")
        return unknown(summary.format(names=", ".join(item.recipe for item in unclear)), seen, Remedy(text))
    return ok(_("{names}: whole").format(names=", ".join(item.recipe for item in corpora)), *seen)


def is_bad(corpus: Corpus) -> bool:
    """Whether nobody should train on it."""
    return bool(corpus.problems) or corpus.tokenizer_matches is False


def _describe(corpus: Corpus) -> list[str]:
    """The evidence of one corpus."""
    lines = [f"{corpus.prefix}: {text}" if corpus.prefix not in text else text for text in corpus.problems]
    if corpus.error:
        lines.append(corpus.error)
    if corpus.tokenizer_matches is False:
        text = _("{prefix} was made with another tokenizer than {path} is now")
        lines.append(text.format(prefix=corpus.prefix, path=corpus.tokenizer))
    elif corpus.tokenizer_matches is None:
        text = _("the tokenizer of {prefix} is not in {path} any more")
        lines.append(text.format(prefix=corpus.prefix, path=corpus.tokenizer))
    return lines or [_("{prefix}.bin and .idx are sound, and from this tokenizer").format(prefix=corpus.prefix)]


def _remedy(bad: list[Corpus], facts: Facts) -> Remedy:
    gone = [path for corpus in bad for path in corpus.missing_inputs]
    if gone:
        text = _("Put back what they were made from ({paths}), or make the corpus from other texts.")
        again = tuple(_train_command(corpus, facts.workspace) for corpus in bad if corpus.standard)
        return Remedy(text.format(paths=", ".join(gone)), again)
    commands = tuple(line for corpus in bad for line in (_aside_command(corpus, facts), _again_command(corpus, facts)))
    return Remedy(_("Move the files aside and make them again as they were made."), commands, automatic=True)


def _aside_command(corpus: Corpus, facts: Facts) -> str:
    files = (f"{corpus.prefix}.bin", f"{corpus.prefix}.idx")
    return shlex.join(("mv", *files, f"{Workspace(Path(facts.workspace)).backups}/"))


def _again_command(corpus: Corpus, facts: Facts) -> str:
    """The user's command where it makes the same, else what the stage's process is."""
    if corpus.standard:
        return _train_command(corpus, facts.workspace)
    python = Workspace(Path(facts.workspace)).python
    return shlex.join((str(python), "-m", "pipeline.child", str(Path(corpus.home) / "job.json")))


def _train_command(corpus: Corpus, workspace: str) -> str:
    return shlex.join(("ucllm", "train", "corpus", "--recipe", corpus.recipe, "--workspace", workspace))


def plan(_profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Move the files of each bad corpus aside, then make it again from what its manifest recorded."""
    actions = []
    for corpus in facts.data.corpora:
        if not is_bad(corpus) or corpus.missing_inputs:
            continue

        def aside(doing: Doing, corpus: Corpus = corpus) -> None:
            for kind in ("bin", "idx"):
                path = Path(f"{corpus.prefix}.{kind}")
                if path.exists() or path.is_symlink():
                    doing.move_aside(path)

        def again(doing: Doing, corpus: Corpus = corpus) -> None:
            _make(corpus, workspace, doing)

        text = _("Move the damaged corpus of {name} aside").format(name=corpus.recipe)
        actions.append(Action(text, (_aside_command(corpus, facts),), aside))
        text = _("Make the corpus of {name} again").format(name=corpus.recipe)
        actions.append(Action(text, (_again_command(corpus, facts),), again))
    return actions


class _Notes(training.Silent):
    """Hands a stage's notes on, and nothing else: a fix is no place for progress bars."""

    def __init__(self, doing: Doing) -> None:
        self._doing = doing

    def event(self, _plan: runs.StagePlan, event: Mapping[str, Any]) -> None:
        """Notes only."""
        if event["event"] == "note":
            self._doing.say(str(event["text"]))


def _make(corpus: Corpus, workspace: Workspace, doing: Doing) -> None:
    """Run the stage as its manifest says it was run. Raises :class:`UcllmError`."""
    home = Path(corpus.home)
    manifest = runs.read_manifest(home)
    if manifest is None:  # another run has begun to replace it
        raise UcllmError("corpus.changing", _("{path} is being changed by another run.").format(path=home))
    outputs = {kind: Path(f"{corpus.prefix}.{kind}") for kind in ("bin", "idx")}
    inputs = {name: Path(entry["path"]) for name, entry in manifest["inputs"].items()}
    plan = runs.StagePlan("corpus", home, manifest["config"], inputs, outputs)
    environment = training.Environment(workspace.python, workspace.state, __version__)
    try:
        training.train([plan], environment, _Notes(doing))
    except training.StageFailed as failure:
        raise failure.error from failure


REQUIREMENT = Requirement(
    "data.corpus",
    N_("Corpora"),
    N_("A damaged corpus, or one of another tokenizer, trains without an error and teaches nonsense."),
    "2-1",
    check,
    plan,
    needs=("env.packages",),
    reads=("data",),
)
