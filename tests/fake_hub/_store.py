"""What the stand-in Hub keeps: repositories, their commits, and uploaded LFS objects. All in memory."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property

LFS_SUFFIXES = ("safetensors", "bin", "model", "pt", "pth", "ckpt", "parquet", "arrow", "npy", "npz", "gz", "zip")
LFS_THRESHOLD = 10 * 1024 * 1024
REPO_TYPES = ("model", "dataset", "space")

# Commits are dated by their number and not by the clock, so that two runs of a test see the same commit ids.
_EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)


class HubError(Exception):
    """An answer that is not a success, with the headers by which the client tells the kinds apart."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class Blob:
    """One version of one file. `lfs` says how it was committed, which decides its ids and its ETag."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        """The LFS object id."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The text that git stores in place of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        """The git blob id: of the content, or of the pointer for an LFS file."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """What the client names the file in its cache."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit with the whole tree it left behind (blobs are shared between commits, so this is cheap)."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    tree: Mapping[str, Blob]

    @property
    def files(self) -> dict[str, bytes]:
        """Path to content, as it was after this commit."""
        return {path: blob.data for path, blob in self.tree.items()}


def default_gitattributes() -> bytes:
    """The file with which the Hub starts a repository."""
    return "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass
class Repo:
    """One repository. Tests read `files`, `private` and `commits`; everything else serves the protocol."""

    id: str
    type: str = "model"
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in `FakeHub.repos`: `user/name`, with `datasets/` or `spaces/` before it where it is not a model."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    @property
    def owner(self) -> str:
        """The user or organisation it belongs to."""
        return self.id.split("/")[0]

    @property
    def files(self) -> dict[str, bytes]:
        """Path to content on `main`, `.gitattributes` included (the Hub creates that file by itself)."""
        return self.commit_at("main").files

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch or a (full) commit id names."""
        oid = self.branches.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def blob_at(self, revision: str, path: str) -> tuple[Commit, Blob]:
        """A file of a revision, or the error by which the client notes that the file does not exist there."""
        commit = self.commit_at(revision)
        if path not in commit.tree:
            # The commit id travels with the error: the client caches "no such file" per commit.
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        return commit, commit.tree[path]

    def add_commit(
        self, branch: str, tree: Mapping[str, Blob], title: str, description: str = "", author: str = ""
    ) -> Commit:
        """Append a commit to a branch and return it."""
        parent = self.branches.get(branch)
        start = f"{self.key}\0{len(self.commits)}\0{parent}\0{title}\0{description}\0"
        digest = hashlib.sha1(start.encode(), usedforsecurity=False)
        for path in sorted(tree):
            digest.update(f"{path}\0{tree[path].oid}\0".encode())
        date = (_EPOCH + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(digest.hexdigest(), parent, title, description, author, date, dict(tree))
        self.commits.append(commit)
        self.branches[branch] = commit.oid
        return commit

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """`lfs` or `regular`, by the rules of the Hub: name, size, or bytes that no text has."""
        named = any(fnmatch.fnmatch(path, f"*.{suffix}") for suffix in LFS_SUFFIXES)
        return "lfs" if named or size >= LFS_THRESHOLD or b"\0" in sample else "regular"


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether simple .gitignore patterns (names, globs, folders) leave a path out."""
    parts = path.split("/")
    for line in gitignore.splitlines():
        pattern = line.strip().rstrip("/").lstrip("/")
        if not pattern or pattern.startswith("#"):
            continue
        if fnmatch.fnmatch(path, pattern) or any(fnmatch.fnmatch(part, pattern) for part in parts):
            return True
    return False


def folders_of(paths: Iterable[str]) -> set[str]:
    """Every folder that holds one of the paths, at any depth."""
    found: set[str] = set()
    for path in paths:
        parts = path.split("/")
        found.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return found
