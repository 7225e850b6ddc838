"""A ``python3-config`` for an environment that has none: in a virtual environment another Python's answers."""

from __future__ import annotations

#: Lies in the environment's ``bin`` and answers from the ``sysconfig`` of the Python beside it. The first two lines are
#: shell to ``sh`` and a text to Python: a ``#!`` line with the interpreter's path may be too long for the kernel, and
#: would be wrong once the environment has moved.
SCRIPT = """\
#!/bin/sh
'''exec' "$(dirname -- "$0")/python" -I -B "$0" "$@"
' '''
# Made by ucllm: a virtual environment has no python3-config, and another Python's names built files wrongly.
import sys
import sysconfig

get = sysconfig.get_config_var
paths = sysconfig.get_paths()


def includes():
    return " ".join(dict.fromkeys(["-I" + paths["include"], "-I" + paths["platinclude"]]))


def libs():
    own = "-lpython" + get("VERSION") + sys.abiflags if "--embed" in sys.argv or not get("Py_ENABLE_SHARED") else ""
    return " ".join(word for word in (own, get("LIBS"), get("SYSLIBS")) if word)


answers = {
    "--prefix": lambda: get("prefix"),
    "--exec-prefix": lambda: get("exec_prefix"),
    "--includes": includes,
    "--cflags": lambda: includes() + " " + (get("CFLAGS") or ""),
    "--libs": libs,
    "--ldflags": lambda: "-L" + (get("LIBPL") or "") + " -L" + (get("LIBDIR") or "") + " " + libs(),
    "--extension-suffix": lambda: get("EXT_SUFFIX"),
    "--abiflags": lambda: sys.abiflags,
    "--configdir": lambda: get("LIBPL"),
}
asked = [word for word in sys.argv[1:] if word != "--embed"]
if not asked or any(word not in answers for word in asked):
    usage = "usage: python3-config [" + "|".join([*answers, "--help"]) + "] [--embed]"
    print(usage, file=sys.stdout if asked == ["--help"] else sys.stderr)
    sys.exit(asked != ["--help"])
for word in asked:
    print(answers[word]())
"""
