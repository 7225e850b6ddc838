"""Runs inside the environment's own Python (3.9 or newer), alone: prints what is installed there as JSON.

It imports nothing but the standard library, and never torch: everything is read from metadata and files.
"""

import json
import os
import re
import sys
import sysconfig
from importlib import metadata


# No pathlib here: it is half of this script's time.
def is_whole(folder: str) -> bool:
    """Whether a ``.dist-info`` is complete: METADATA with a version, and the RECORD that pip writes last.

    pip first copies the wheel's own RECORD, then makes the package's commands, then writes one that names INSTALLER.
    """
    try:
        with open(os.path.join(folder, "METADATA"), "rb") as stream:  # noqa: PTH118, PTH123
            versioned = re.search(rb"^Version: *\S", stream.read(), re.MULTILINE)
        with open(os.path.join(folder, "RECORD"), "rb") as stream:  # noqa: PTH118, PTH123
            return bool(versioned) and b"/INSTALLER," in stream.read()
    except OSError:
        return False


def _has_pip(dists: "dict[str, list[object]]") -> bool:
    """Whether ``python -m pip`` can work: the distribution is whole and the package lies on the path."""
    folders = [os.path.join(folder, "pip", "__main__.py") for folder in sys.path]  # noqa: PTH118
    return bool(dists.get("pip", ["", False])[1]) and any(os.path.exists(path) for path in folders)  # noqa: PTH110


def main() -> None:
    """Print the facts as one JSON object."""
    dists = {}
    for dist in metadata.distributions():
        folder = getattr(dist, "_path", None)
        try:
            name, version = dist.metadata["Name"] or "", dist.version or ""
        except (KeyError, OSError, ValueError):
            name = version = ""
        if not name and folder is not None:
            # A distribution whose METADATA is gone still has its name in the folder's.
            name = str(folder.name).split("-")[0]
        # `~name` is what pip renames a distribution to while it replaces it.
        if not name or (folder is not None and folder.name.startswith("~")):
            continue
        key = re.sub(r"[-_.]+", "-", name).lower()
        whole = bool(version) and (folder is None or is_whole(str(folder)))
        if key not in dists:  # the first on sys.path is the one that is imported
            dists[key] = [version, whole]
    print(
        json.dumps(
            {
                "executable": sys.executable,
                "version": ".".join(str(part) for part in sys.version_info[:3]),
                "prefix": sys.prefix,
                "base_prefix": sys.base_prefix,
                "pip": _has_pip(dists),
                "extension_suffix": sysconfig.get_config_var("EXT_SUFFIX") or "",
                "dists": dists,
            }
        )
    )


if __name__ == "__main__":
    main()
