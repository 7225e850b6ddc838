"""The stand-in Hub's file traffic: downloads by `resolve`, and uploads by the Git LFS "basic" transfer."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ._store import HubError, Repo
from ._wire import Answer, Call

if TYPE_CHECKING:
    from . import FakeHub

_RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/(upload|verify)/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def handle(hub: FakeHub, call: Call) -> Answer | None:
    """Answer a request for file content, or None where the stand-in knows no such route."""
    if call.method in ("GET", "HEAD") and (match := _RESOLVE.fullmatch(call.path)):
        repo_type, repo_id, revision, path = (unquote(part or "") for part in match.groups())
        return _resolve(hub.repo_for(call, repo_type or "model", repo_id, write=False), revision, path, call)
    if call.method == "POST" and (match := _BATCH.fullmatch(call.path)):
        repo_type, repo_id = (unquote(part or "") for part in match.groups())
        return _batch(hub, hub.repo_for(call, repo_type or "model", repo_id, write=True), call)
    if match := _OBJECT.fullmatch(call.path):
        if call.method == "PUT" and match[1] == "upload":
            return _upload(hub, match[2], call)
        if call.method == "POST" and match[1] == "verify":
            return _verify(hub, match[2], call)
    return None


def _resolve(repo: Repo, revision: str, path: str, call: Call) -> Answer:
    commit, blob = repo.blob_at(revision, path)
    name = path.rsplit("/", 1)[-1]
    headers = {
        "Content-Type": "application/octet-stream" if blob.lfs else "text/plain; charset=utf-8",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}; filename=\"{quote(name)}\";",
        "Accept-Ranges": "bytes",
        "ETag": f'"{blob.etag}"',
        "X-Repo-Commit": commit.oid,
    }
    if blob.lfs:
        headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-Etag": f'"{blob.sha256}"'}
    wanted = call.headers.get("range")
    span = _RANGE.fullmatch(wanted) if wanted else None
    if span is None or span.groups() == ("", ""):
        return Answer(200, blob.data, headers)
    size = len(blob.data)
    if span[1]:
        first, last = int(span[1]), min(int(span[2]), size - 1) if span[2] else size - 1
    else:
        first, last = max(size - int(span[2]), 0), size - 1  # "-n": the last n bytes
    if first > last:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(206, blob.data[first : last + 1], headers)


def _batch(hub: FakeHub, repo: Repo, call: Call) -> Answer:
    payload = call.json()
    if payload.get("operation") != "upload" or payload.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "only uploads by sha256 are part of this stand-in")
    objects = []
    for wanted in payload.get("objects", []):
        oid, size = str(wanted["oid"]), int(wanted["size"])
        entry: dict[str, object] = {"oid": oid, "size": size, "authenticated": True}
        if oid not in repo.lfs_objects:  # no actions means: the Hub has it, send nothing
            ticket = secrets.token_hex(8)
            with hub.lock:
                hub.tickets[ticket] = (repo, oid, size)
            upload = f"{hub.url}/lfs/upload/{oid}?ticket={ticket}"
            verify = f"{hub.url}/lfs/verify/{oid}?ticket={ticket}"
            entry["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
        objects.append(entry)
    # Whatever else the client offers ("multipart", "xet"), the server chooses the one PUT.
    return Answer.of_json({"transfer": "basic", "objects": objects})


def _ticket(hub: FakeHub, oid: str, call: Call) -> tuple[Repo, int]:
    """What a signed upload address stands for. The client sends no token there, as with the Hub's storage."""
    repo, known, size = hub.tickets.get(call.query.get("ticket", [""])[0], (None, "", 0))
    if repo is None or known != oid:
        raise HubError(403, "this upload address was not issued by the batch endpoint")
    return repo, size


def _upload(hub: FakeHub, oid: str, call: Call) -> Answer:
    repo, size = _ticket(hub, oid, call)
    if len(call.body) != size:
        raise HubError(400, f"the object has {len(call.body)} bytes, the batch request said {size}")
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise HubError(400, f"the content does not match its sha256 {oid}")
    repo.lfs_objects[oid] = call.body
    return Answer(200, headers={"ETag": f'"{oid}"'})


def _verify(hub: FakeHub, oid: str, call: Call) -> Answer:
    repo, _ = _ticket(hub, oid, call)
    hub.writer(call)
    payload = call.json()
    stored = repo.lfs_objects.get(oid)
    if payload.get("oid") != oid or stored is None or payload.get("size") != len(stored):
        raise HubError(404, f"no such object: {oid}")
    return Answer.of_json({"message": "Object verified"})
