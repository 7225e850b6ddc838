"""Runs inside the environment's own Python (3.9 or newer), alone: prints what is installed there as JSON.

It imports nothing but the standard library, and never torch: everything is read from metadata and files.
"""

import json
import os
import re
import sys
import sysconfig
from importlib import metadata


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
            name = str(folder.name).split("-")[0].lstrip("~")
        if not name or name.startswith("~"):
            continue
        key = re.sub(r"[-_.]+", "-", name).lower()
        # pip writes RECORD last: a distribution without it was interrupted while it was copied.
        whole = bool(version) and (folder is None or os.path.exists(os.path.join(str(folder), "RECORD")))  # noqa: PTH110, PTH118  no pathlib here: it is half of this script's time
        if key not in dists:  # the first on sys.path is the one that is imported
            dists[key] = [version, whole]
    print(
        json.dumps(
            {
                "executable": sys.executable,
                "version": ".".join(str(part) for part in sys.version_info[:3]),
                "prefix": sys.prefix,
                "base_prefix": sys.base_prefix,
                "extension_suffix": sysconfig.get_config_var("EXT_SUFFIX") or "",
                "dists": dists,
            }
        )
    )


main()
