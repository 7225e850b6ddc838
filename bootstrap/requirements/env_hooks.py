"""``env.hooks``: activating the environment sets LD_LIBRARY_PATH, deactivating it restores it exactly (Step 0-2)."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from bootstrap.facts import Facts, Hook
from bootstrap.facts.conda import ACTIVATE, DEACTIVATE
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _
from pipeline.runs import write_text_atomically

MODE = 0o755

# Both are sourced into the user's shell (sh, bash, zsh), which may run under `set -eu`: no command that may fail, no
# variable that may be unset. Each activation adds one entry and each deactivation removes one, wherever it stands by
# then. What an emptied variable was before is kept in UCLLM_HOOK_STATE, two letters for each activation, newest
# first: for LD_LIBRARY_PATH and PYTHONNOUSERSITE, u unset, e empty, k kept (it had a value).
_ACTIVATE = """\
# Written by ucllm. Changed by hand, it will not match deactivate.d/rollback_environment_variable.sh any more.
_ucllm_lib={lib}
if [ -n "${{LD_LIBRARY_PATH-}}" ]; then
    _ucllm_state=k
    LD_LIBRARY_PATH="${{_ucllm_lib}}:${{LD_LIBRARY_PATH}}"
else
    _ucllm_state=u
    if [ -n "${{LD_LIBRARY_PATH+set}}" ]; then _ucllm_state=e; fi
    LD_LIBRARY_PATH="${{_ucllm_lib}}"
fi
if [ -n "${{PYTHONNOUSERSITE-}}" ]; then
    _ucllm_state="${{_ucllm_state}}k"
else
    if [ -n "${{PYTHONNOUSERSITE+set}}" ]; then
        _ucllm_state="${{_ucllm_state}}e"
    else
        _ucllm_state="${{_ucllm_state}}u"
    fi
    PYTHONNOUSERSITE=1
fi
UCLLM_HOOK_STATE="${{_ucllm_state}}${{UCLLM_HOOK_STATE-}}"
export LD_LIBRARY_PATH PYTHONNOUSERSITE UCLLM_HOOK_STATE
unset _ucllm_lib _ucllm_state
"""
_DEACTIVATE = """\
# Written by ucllm. Changed by hand, it will not match activate.d/edit_environment_variable.sh any more.
_ucllm_lib={lib}
_ucllm_state="${{UCLLM_HOOK_STATE-}}"
_ucllm_all=":${{LD_LIBRARY_PATH-}}:"
case "${{_ucllm_all}}" in
*":${{_ucllm_lib}}:"*)
    _ucllm_all=${{_ucllm_all%%":${{_ucllm_lib}}:"*}}:${{_ucllm_all#*":${{_ucllm_lib}}:"}}
    _ucllm_all=${{_ucllm_all#:}}
    LD_LIBRARY_PATH=${{_ucllm_all%:}}
    if [ -z "${{LD_LIBRARY_PATH}}" ]; then
        case "${{_ucllm_state}}" in
        e*) ;;
        *) unset LD_LIBRARY_PATH ;;
        esac
    fi
    ;;
esac
case "${{_ucllm_state}}" in
?u*) unset PYTHONNOUSERSITE ;;
?e*) PYTHONNOUSERSITE= ;;
esac
case "${{_ucllm_state}}" in
???*) UCLLM_HOOK_STATE=${{_ucllm_state#??}} ;;
*) unset UCLLM_HOOK_STATE ;;
esac
unset _ucllm_lib _ucllm_state _ucllm_all
"""


def texts(env: str) -> dict[str, str]:
    """The two hooks for the environment in ``env``: name to text."""
    # Not shlex.quote: it leaves some paths bare, and facts with an anonymous path must compare the same way.
    lib = "'" + f"{env}/lib".replace("'", "'\\''") + "'"
    return {ACTIVATE: _ACTIVATE.format(lib=lib), DEACTIVATE: _DEACTIVATE.format(lib=lib)}


def check(profile: Profile, facts: Facts) -> Finding:
    """Both hooks are there, exactly as we write them, and executable."""
    if profile.env_kind != "conda":
        return skipped(_("only a conda environment has activation hooks"))
    hooks = {hook.name: hook for hook in facts.conda.hooks}
    folder = Path(facts.env.path) / "etc" / "conda"
    looked = _("looked for {names} in {folder}").format(names=", ".join((ACTIVATE, DEACTIVATE)), folder=folder)
    hidden = [hook.name for hook in hooks.values() if hook.text is None]
    if hidden:
        return unknown(_("A hook cannot be read."), (looked, *hidden))
    wrong = _wrong(facts, hooks)
    if not wrong:
        return ok(_("both hooks are in place"), looked)
    commands = tuple(line for action in _actions(facts) for line in action.commands)
    remedy = Remedy(_("Put ucllm's hooks in their place; old ones are kept."), commands, automatic=True)
    return fail(_("The environment's hooks are not right."), (looked, *wrong.values()), remedy)


def _wrong(facts: Facts, hooks: dict[str, Hook]) -> dict[str, str]:
    """What is wrong with each hook, in words; nothing for those that are right."""
    found = {}
    for name, text in texts(facts.env.path).items():
        hook = hooks.get(name)
        if hook is None:
            found[name] = _("{name}: is missing").format(name=name)
        elif hook.text != text:
            found[name] = f"{name}: {_difference(hook.text or '', text)}"
        elif not hook.executable:
            found[name] = _("{name}: is not executable").format(name=name)
    return found


def _difference(text: str, wanted: str) -> str:
    if not text.strip():
        return _("is empty")
    if text.replace("\r\n", "\n") == wanted:
        return _("has Windows line ends (CRLF), which a shell takes for part of each value")
    if "ORIGINAL_LD_LIBRARY_PATH" in text:
        return _(
            "is the guide's own: where LD_LIBRARY_PATH was unset it leaves an empty entry (the current folder) and "
            "later an empty variable, run twice it forgets what was there before, and `set -u` stops it"
        )
    return _("is not the text that ucllm writes for this environment")


def _actions(facts: Facts) -> list[Action]:
    hooks = {hook.name: hook for hook in facts.conda.hooks}
    folder, wanted = Path(facts.env.path) / "etc" / "conda", texts(facts.env.path)
    actions = []
    for name in _wrong(facts, hooks):
        path, hook = folder / name, hooks.get(name)

        def act(
            doing: Doing,
            path: Path = path,
            text: str = wanted[name],
            old: bool = bool(hook and hook.text != wanted[name]),
        ) -> None:
            if os.path.lexists(path) and (old or not path.is_file()):
                doing.say(_("the old one is kept in {path}").format(path=doing.move_aside(path)))
            if not path.exists():
                write_text_atomically(path, text)
            doing.chmod(path, MODE)

        chmod = shlex.join(("chmod", f"{MODE:o}", str(path)))
        if hook and hook.text == wanted[name]:
            actions.append(Action(_("Make {name} executable").format(name=name), (chmod,), act))
        else:
            commands = (_("# write ucllm's text to {path}").format(path=path), chmod)
            actions.append(Action(_("Write {name}").format(name=name), commands, act))
    return actions


def plan(profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
    """Move each hook that is not ours aside and write ours."""
    return _actions(facts) if profile.env_kind == "conda" else []


REQUIREMENT = Requirement(
    "env.hooks",
    N_("Activation hooks"),
    N_("Without them programs load the system's libstdc++ and CUDA instead of the environment's, or keep doing so."),
    "0-2",
    check,
    plan,
    needs=("env.python",),
    reads=("env", "conda"),
)
