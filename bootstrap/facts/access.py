"""Logins: whether there is one, and where. The login itself is never read, kept or shown."""

from __future__ import annotations

import os
import stat
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from bootstrap.facts import AccessFacts, Login
from bootstrap.facts.collect import Request

#: Where W&B's own client logs in, unless ``WANDB_BASE_URL`` names a server of one's own.
WANDB_HOST = "api.wandb.ai"


def collect(_request: Request) -> AccessFacts:
    """Look for both logins."""
    hub_file = huggingface_file()
    netrc_files = _netrc_files()
    return AccessFacts(
        huggingface=huggingface(),
        wandb=_wandb(netrc_files),
        wandb_mode=os.environ.get("WANDB_MODE", ""),
        looked_in=("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", str(hub_file)),
        wandb_looked_in=("WANDB_API_KEY", *map(str, netrc_files)),
        # What huggingface_hub takes for true.
        hub_offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    )


def huggingface() -> Login:
    """The Hugging Face login, by the places that huggingface_hub looks in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return Login("variable", name)
    return _in_file(huggingface_file())


def huggingface_file() -> Path:
    """The file in which huggingface_hub keeps the login."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()


def _home() -> Path:
    """The home folder; one that nobody knows is the current folder."""
    try:
        return Path.home()
    except RuntimeError:
        return Path()


def _in_file(path: Path) -> Login:
    try:
        status = path.stat()
    except OSError:
        return Login()
    return Login("file", str(path), f"{stat.S_IMODE(status.st_mode):04o}") if stat.S_ISREG(status.st_mode) else Login()


def _netrc_files() -> tuple[Path, ...]:
    """``NETRC``, else ``~/.netrc`` and ``~/_netrc``, as the requests library looks for them."""
    named = os.environ.get("NETRC")
    return (Path(named).expanduser(),) if named else (_home() / ".netrc", _home() / "_netrc")


def _wandb(files: Sequence[Path]) -> Login:
    if os.environ.get("WANDB_API_KEY"):
        return Login("variable", "WANDB_API_KEY")
    server = os.environ.get("WANDB_BASE_URL", "")
    host = urllib.parse.urlsplit(server).hostname or WANDB_HOST
    for path in files:
        if _names(path, host):
            return _in_file(path)
    return Login()


def _names(path: Path, host: str) -> bool:
    """Whether a netrc file has a ``machine`` entry for ``host``. Of each line only that word and the next are kept."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return any(line.split()[:2] == ["machine", host] for line in stream)
    except OSError:
        return False
