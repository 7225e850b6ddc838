"""``build.helpers``: Megatron's C++ helpers are built for this Python and named for it (the guide's trap 1).

``pretrain_gpt.py`` runs ``make`` in ``megatron/data`` at every start, and the Makefile asks the first
``python3-config`` on the path for the file's suffix. A virtual environment has none: another Python's names the file,
which is then never found, and training ends after its model was built.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts, Helpers
from bootstrap.facts.builds import search_path
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.requirements._python_config import SCRIPT
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _
from pipeline.runs import write_text_atomically

#: Prints the folders of headers: Python's own, then pybind11's.
_INCLUDES = "import sysconfig, pybind11; print(sysconfig.get_path('include')); print(pybind11.get_include())"


def check(_profile: Profile, facts: Facts) -> Finding:
    """The right file is there and loads; and the next ``make`` will name it right."""
    helpers, suffix = facts.builds.helpers, facts.env.extension_suffix
    if helpers is None:
        return unknown(_("The folder of the helpers could not be read."), ("megatron/data",))
    if not suffix:
        return unknown(_("The environment's Python does not say how it names extensions."), (facts.env.path,))
    right = f"helpers{suffix}"
    evidence = [
        _("looked for {name} in {folder}; found: {files}").format(
            name=right, folder=helpers.folder, files=", ".join(helpers.files) or _("none")
        ),
        _("at the next start `make` will name it helpers{suffix}").format(suffix=helpers.make_suffix),
    ]
    if helpers.makefile_edited:
        evidence.append(_("the Makefile's LIBEXT is not the one of the pinned commit"))
    if not _needs_build(helpers) and helpers.make_suffix == suffix:
        return ok(_("{name} loads").format(name=right), *evidence)
    text = _("Build them for this Python, and let `make` name them so from now on.")
    remedy = Remedy(text, _commands(facts, helpers), automatic=not helpers.makefile_edited)
    if helpers.loads:
        evidence.append(helpers.loads)
    if right not in helpers.files and helpers.files and helpers.loads:
        return fail(_("The helpers are named for another Python."), evidence, remedy)
    if right not in helpers.files and helpers.loads:
        return fail(_("The helpers have not been built."), evidence, remedy)
    if helpers.loads:
        return fail(_("The helpers cannot be loaded."), evidence, remedy)
    if helpers.stale and helpers.make_suffix != suffix:
        return fail(_("The helpers are older than their source, and `make` would not renew them."), evidence, remedy)
    if helpers.stale:
        return warn(_("The helpers are older than their source; the next start builds them anew."), evidence, remedy)
    return warn(_("At the next start `make` would build them again, under another name."), evidence, remedy)


def _needs_build(helpers: Helpers) -> bool:
    return bool(helpers.loads) or helpers.stale


def _commands(facts: Facts, helpers: Helpers) -> tuple[str, ...]:
    make = shlex.join(("make", "-C", helpers.folder, f"LIBEXT={facts.env.extension_suffix}"))
    includes = f'CPPFLAGS="$({shlex.quote(facts.env.interpreter)} -m pybind11 --includes)"'
    return (f"{make} {includes}",) if _needs_build(helpers) else ()


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Set aside what is named or built for another Python, give the environment its python3-config, then ``make``."""
    helpers, suffix = facts.builds.helpers, facts.env.extension_suffix
    source = profile.sources.get("megatron")
    if helpers is None and source is not None:
        return [_later(workspace, source.folder)]
    if helpers is None or not suffix or helpers.makefile_edited:
        return []
    folder, python = Path(helpers.folder), Path(facts.env.python or workspace.python)
    actions = []
    right = f"helpers{suffix}"
    wrong = [name for name in helpers.files if name != right or _needs_build(helpers)]
    if wrong:

        def aside(doing: Doing) -> None:
            for name in wrong:
                if (folder / name).exists():
                    doing.move_aside(folder / name)

        moves = shlex.join(("mv", *(str(folder / name) for name in wrong), f"{workspace.backups}/"))
        actions.append(Action(_("Move aside: {names}").format(names=", ".join(wrong)), (moves,), aside))
    if helpers.make_suffix != suffix:
        config = workspace.env / "bin" / "python3-config"

        def configure(doing: Doing) -> None:
            if config.exists() or config.is_symlink():  # one that answers for another Python
                doing.move_aside(config)
            write_text_atomically(config, SCRIPT)
            config.chmod(0o755)

        text = _("Write {path}, which answers for this Python: `make` will name the helpers right").format(path=config)
        actions.append(Action(text, (), configure))
    if _needs_build(helpers):

        def build(_doing: Doing) -> None:
            _make(folder, python, suffix, workspace)

        text = _("Build {name} with the environment's Python").format(name=right)
        actions.append(Action(text, _commands(facts, helpers), build))
    return actions


def _later(workspace: Workspace, checkout: str) -> Action:
    """What is to be done once there are a checkout and an environment: for a plan, which is made again by then."""
    python = shlex.quote(str(workspace.python))
    suffix = f"""LIBEXT="$({python} -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')\""""
    includes = f'CPPFLAGS="$({python} -m pybind11 --includes)"'
    folder = shlex.quote(str(workspace.root / checkout / "megatron" / "data"))
    text = _("Build Megatron's helpers with the environment's Python, and name them for it")
    return Action(text, (f"make -C {folder} {suffix} {includes}",), lambda _doing: None)


def _make(folder: Path, python: Path, suffix: str, workspace: Workspace) -> None:
    """Build with everything said on the command line, which beats the Makefile: nothing in the checkout is edited."""
    log = workspace.state / "logs" / "build.helpers.txt"
    path = search_path(workspace)
    missing = [name for name in ("make", "g++") if shutil.which(name, path=path) is None]
    if missing:
        raise UcllmError(
            "helpers.no-compiler",
            _("The helpers cannot be built: {names} not found.").format(names=", ".join(missing)),
            "",
            _("On Debian and Ubuntu, `apt install build-essential` provides them."),
        )
    said = host.capture((str(python), "-I", "-B", "-c", _INCLUDES), timeout_s=60)
    folders = said.stdout.split("\n")[:2]
    if said.code != 0 or not all(folders):
        raise UcllmError(
            "helpers.no-pybind11",
            _("The helpers cannot be built: the environment has no pybind11."),
            (said.stderr.strip().splitlines() or [""])[-1],
            _("Install the profile's packages first: `ucllm doctor --fix --only env.packages`"),
        )
    # make reads `$` before the shell reads the quotes.
    flags = " ".join(shlex.quote(f"-I{name}") for name in folders).replace("$", "$$")
    argv = ("make", "-C", str(folder), f"LIBEXT={suffix}", f"CPPFLAGS={flags}")
    host.run_logged(argv, log=log, env={"PATH": path, "MAKEFLAGS": ""})


REQUIREMENT = Requirement(
    "build.helpers",
    N_("Megatron's helpers"),
    N_("Under another Python's name they are not found, and training ends after its model was built."),
    "0-4",
    check,
    plan,
    needs=("source.megatron", "env.python"),
    reads=("builds", "env"),
)
