"""The Hub's JSON API, as far as the real client uses it: accounts, repositories, listings, commits."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from ._store import REPO_TYPES, Blob, Commit, HubError, Repo, default_gitattributes, folders_of, is_ignored
from ._wire import Answer, Call

if TYPE_CHECKING:
    from . import FakeHub

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REPO_PATH = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?")


@dataclass
class RepoCall:
    """A request about one repository: `revision` and `path` are what the address names after it."""

    hub: FakeHub
    call: Call
    repo: Repo
    revision: str
    path: str


def handle(hub: FakeHub, call: Call) -> Answer | None:
    """Answer a request under /api/, or None where the stand-in knows no such route."""
    account = _ACCOUNT_ROUTES.get((call.method, call.path))
    if account is not None:
        return account(hub, call)
    match = _REPO_PATH.fullmatch(call.path)
    if match is None:
        return None
    repo_type, repo_id, verb, revision, path = (unquote(part or "") for part in match.groups())
    route = _REPO_ROUTES.get((call.method, verb))
    if route is None:
        return None
    write, function = route
    repo = hub.repo_for(call, repo_type, repo_id, write=write)
    return function(RepoCall(hub, call, repo, revision or "main", path))


# --- accounts and repositories ---------------------------------------------------------------------------------------


def _whoami(hub: FakeHub, call: Call) -> Answer:
    account = hub.account(call)
    if account is None:
        raise HubError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": account.role}
    return Answer.of_json(
        {
            "type": "user",
            "id": "0" * 24,
            "name": account.user,
            "fullname": account.user,
            "email": f"{account.user}@127.0.0.1",
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def _visibility(payload: Mapping[str, Any]) -> bool | None:
    """`private` as a boolean: newer clients send `visibility`, older ones `private`."""
    if "visibility" in payload:
        return bool(payload["visibility"] != "public")
    return bool(payload["private"]) if payload.get("private") is not None else None


def _create(hub: FakeHub, call: Call) -> Answer:
    account = hub.writer(call)
    payload = call.json()
    name, repo_type = str(payload.get("name", "")), str(payload.get("type") or "model")
    owner = str(payload.get("organization") or account.user)
    if _NAME.fullmatch(name) is None or repo_type not in REPO_TYPES:
        raise HubError(400, f"Invalid repo name or type: {name!r}, {repo_type!r}")
    if owner != account.user:
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"')
    repo = Repo(f"{owner}/{name}", repo_type, private=_visibility(payload) or False)
    url = f"{hub.url}/{repo.key}"
    with hub.lock:
        if repo.key in hub.repos:
            # The client reads `url` from this answer too: with exist_ok a 409 is a success.
            message = f"You already created this {repo_type} repo: {repo.id}"
            return Answer.of_json({"error": message, "url": url}, 409, {"X-Error-Message": message})
        repo.add_commit("main", {".gitattributes": Blob(default_gitattributes())}, "initial commit", "", account.user)
        hub.repos[repo.key] = repo
    return Answer.of_json({"url": url, "name": repo.id, "id": "0" * 24})


def _delete(hub: FakeHub, call: Call) -> Answer:
    payload = call.json()
    owner = payload.get("organization") or hub.writer(call).user
    repo = hub.repo_for(call, str(payload.get("type") or "model"), f"{owner}/{payload.get('name')}", write=True)
    with hub.lock:
        hub.repos.pop(repo.key, None)
    return Answer.of_json({})


def _validate_yaml(_hub: FakeHub, call: Call) -> Answer:
    """A coarse check: the stand-in has no YAML parser, and refuses only what no parser would accept."""
    content = str(call.json().get("content", ""))
    warnings, errors = [], []
    if not content.startswith("---\n"):
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    else:
        head, end, _ = content[4:].partition("\n---")
        bad = [line for line in head.splitlines() if line.startswith("\t") or not re.match(r"\s*(-|#|$|[^:]+:)", line)]
        if not end:
            errors.append({"message": "the metadata block is not closed by a line of three dashes"})
        errors += [{"message": f"not a YAML line: {line!r}"} for line in bad]
    return Answer.of_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


_ACCOUNT_ROUTES: dict[tuple[str, str], Callable[[FakeHub, Call], Answer]] = {
    ("GET", "/api/whoami-v2"): _whoami,
    ("POST", "/api/repos/create"): _create,
    ("DELETE", "/api/repos/delete"): _delete,
    ("POST", "/api/validate-yaml"): _validate_yaml,
}


def _settings(at: RepoCall) -> Answer:
    private = _visibility(at.call.json())
    if private is not None:
        at.repo.private = private
    return Answer.of_json({"private": at.repo.private})


# --- listings --------------------------------------------------------------------------------------------------------


def _info(at: RepoCall) -> Answer:
    commit = at.repo.commit_at(at.revision)
    siblings: list[dict[str, Any]] = []
    for path, blob in sorted(commit.tree.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if at.call.flag("blobs"):
            entry |= {"size": len(blob.data), "blobId": blob.oid}
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        siblings.append(entry)
    value = {
        "_id": "0" * 24,
        "id": at.repo.id,
        "author": at.repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": at.repo.commits[0].date,
        "private": at.repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        "usedStorage": sum(len(blob.data) for blob in commit.tree.values()),
    }
    if at.repo.type == "model":
        value["modelId"] = at.repo.id
    return Answer.of_json(value)


def _entry(commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    blob = commit.tree.get(path)
    if blob is None:
        entry: dict[str, Any] = {"type": "directory", "oid": commit.oid, "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": blob.oid, "size": len(blob.data), "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    if expand:
        entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return entry


def _tree(at: RepoCall) -> Answer:
    commit = at.repo.commit_at(at.revision)
    known = set(commit.tree) | folders_of(commit.tree)
    if at.path and at.path not in known:
        raise HubError(404, f'"{at.path}" does not exist on "{at.revision}"', "EntryNotFound")
    prefix = f"{at.path}/" if at.path else ""
    below = [path for path in sorted(known) if path.startswith(prefix)]
    if not at.call.flag("recursive"):
        below = [path for path in below if "/" not in path[len(prefix) :]]
    return Answer.of_json([_entry(commit, path, at.call.flag("expand")) for path in below])


def _paths_info(at: RepoCall) -> Answer:
    if "json" in at.call.headers.get("content-type", ""):
        payload = at.call.json()
        paths, expand = list(payload.get("paths", [])), bool(payload.get("expand"))
    else:
        form = parse_qs(at.call.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    commit = at.repo.commit_at(at.revision)
    known = set(commit.tree) | folders_of(commit.tree)
    # A path that does not exist is left out of the answer, and is no error.
    return Answer.of_json([_entry(commit, path, expand) for path in paths if path in known])


def _refs(at: RepoCall) -> Answer:
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in at.repo.branches.items()]
    return Answer.of_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})


def _history(at: RepoCall) -> Answer:
    found: list[dict[str, Any]] = []
    oid: str | None = at.repo.commit_at(at.revision).oid
    while oid is not None:
        commit = at.repo.commit_at(oid)
        author = {"user": commit.author}
        found.append(
            {"id": oid, "title": commit.title, "message": commit.description, "authors": [author], "date": commit.date}
        )
        oid = commit.parent
    return Answer.of_json(found)


def _branch(at: RepoCall) -> Answer:
    start = (at.call.json() if at.call.body else {}).get("startingPoint") or "main"
    with at.hub.lock:
        if at.revision in at.repo.branches:
            raise HubError(409, f"Reference already exists: {at.revision}")
        at.repo.branches[at.revision] = at.repo.commit_at(str(start)).oid
    return Answer.of_json({})


def _auth_check(_at: RepoCall) -> Answer:
    return Answer.of_json({})


# --- uploads ---------------------------------------------------------------------------------------------------------


def _preupload(at: RepoCall) -> Answer:
    payload = at.call.json()
    commit = at.repo.commit_at(at.revision)
    ignore = str(payload.get("gitIgnore") or commit.files.get(".gitignore", b"").decode())
    files = []
    for file in payload.get("files", []):
        path = str(file["path"])
        mode = at.repo.upload_mode(path, int(file["size"]), base64.b64decode(file.get("sample", "")))
        old = commit.tree.get(path)
        # By this id the client sees that a file has not changed, and leaves it out of the commit.
        oid = old.etag if old is not None and old.lfs == (mode == "lfs") else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(path, ignore), "oid": oid})
    return Answer.of_json({"files": files, "commitOid": commit.oid})


def _commit(at: RepoCall) -> Answer:
    if at.call.flag("create_pr"):
        raise HubError(400, "pull requests are no part of this stand-in")
    try:
        lines = [json.loads(line) for line in at.call.body.splitlines() if line.strip()]
        operations = [(str(line["key"]), dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(400, f"Invalid commit: {error}") from error
    if not operations or operations[0][0] != "header":
        raise HubError(400, "Invalid commit: the first line must be the header")
    header = operations[0][1]
    with at.hub.lock:
        if at.revision not in at.repo.branches:
            raise HubError(404, f"Invalid rev id: {at.revision}", "RevisionNotFound")
        head = at.repo.commit_at(at.revision)
        parent = header.get("parentCommit")
        if parent and not head.oid.startswith(str(parent)):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for key, value in operations[1:]:
            _apply(at.repo, tree, key, value)
        account = at.hub.writer(at.call)
        title, text = str(header.get("summary", "")), str(header.get("description", ""))
        commit = at.repo.add_commit(at.revision, tree, title, text, account.user)
    url = f"{at.hub.url}/{at.repo.key}/commit/{commit.oid}"
    return Answer.of_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})


def _apply(repo: Repo, tree: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
    """Carry out one line of a commit on a tree."""
    path = str(value.get("path", ""))
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise HubError(400, f"Invalid path: {path!r}")
    if key == "file":
        data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        if repo.upload_mode(path, len(data), data[:512]) == "lfs" and data:
            raise HubError(400, f"Your push was rejected: {path} must be uploaded with Git LFS")
        tree[path] = Blob(data)
    elif key == "lfsFile":
        oid = str(value.get("oid"))
        if oid not in repo.lfs_objects:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path} ({oid})")
        tree[path] = Blob(repo.lfs_objects[oid], lfs=True)
    elif key == "deletedFile":
        if tree.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        gone = [name for name in tree if name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise HubError(400, f"Unknown operation in a commit: {key}")


def _no_xet(_at: RepoCall) -> Answer:
    # A 1.x client asks the LFS batch endpoint first, and takes the plain transfer that is offered there. 2.x asks
    # nobody: with hf_xet installed it comes straight here, unless its environment forbids it.
    raise HubError(404, "this stand-in has no Xet storage: start the client with HF_HUB_DISABLE_XET=1")


# (method, word after the repository) -> (needs write access, function)
_REPO_ROUTES: dict[tuple[str, str], tuple[bool, Callable[[RepoCall], Answer]]] = {
    ("GET", ""): (False, _info),
    ("GET", "revision"): (False, _info),
    ("GET", "tree"): (False, _tree),
    ("POST", "paths-info"): (False, _paths_info),
    ("GET", "refs"): (False, _refs),
    ("GET", "commits"): (False, _history),
    ("GET", "auth-check"): (False, _auth_check),
    ("PUT", "settings"): (True, _settings),
    ("POST", "branch"): (True, _branch),
    ("POST", "preupload"): (True, _preupload),
    ("POST", "commit"): (True, _commit),
    ("GET", "xet-write-token"): (True, _no_xet),
    ("GET", "xet-read-token"): (False, _no_xet),
}
