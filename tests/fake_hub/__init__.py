"""A stand-in for the Hugging Face Hub, for tests only: its protocol on 127.0.0.1, its storage in memory.

The real `huggingface_hub` client talks to it, usually in a child process:

    with FakeHub(token="hf_test", user="tester") as hub:
        subprocess.run([python, "push.py"], env={**os.environ, **hub.env(tmp_path)})
        assert hub.repos["tester/name"].files["config.json"] == b"{}"

It knows the routes that uploads, downloads, `from_pretrained` and `load_dataset` use. It has no Xet storage, no pull
requests, tags or organisations, no redirect to a content network, and checks model cards only coarsely.
A 2.x client with `hf_xet` installed uses Xet without asking, so it needs HF_HUB_DISABLE_XET=1, which `env` sets.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from . import _api, _files
from ._faults import Fault, FaultPlan, When
from ._store import Blob, Commit, HubError, Repo, default_gitattributes
from ._wire import Answer, Call, HubServer, Request

__all__ = ["TEST_TOKEN", "Account", "Blob", "Commit", "FakeHub", "Repo", "Request"]


TEST_TOKEN = "hf_test"


@dataclass(frozen=True)
class Account:
    """Whose token it is, and whether it may write."""

    user: str
    role: Literal["read", "write"] = "write"


class FakeHub:
    """The server. Read `repos`, `requests`, `unknown` and `errors`; order faults before the client starts."""

    def __init__(self, token: str = TEST_TOKEN, user: str = "tester") -> None:
        self.token = token
        self.user = user
        self.tokens: dict[str, Account] = {token: Account(user)}
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        """Requests to routes the stand-in does not have (it answered 404): where this is not empty, extend it."""
        self.errors: list[str] = []
        """Tracebacks of the stand-in's own bugs. A test fixture asserts that this is empty."""
        self.faults = FaultPlan()
        self.lock = threading.RLock()
        self.tickets: dict[str, tuple[Repo, str, int]] = {}
        self._server = HubServer(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close_all()
        self._thread.join(5)

    @property
    def url(self) -> str:
        """The endpoint, to be set as HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def env(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment for a child process: this server and nothing else, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            # A proxy of the machine must not be asked for an address of this machine.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    # --- contents ----------------------------------------------------------------------------------------------------

    def add_token(self, token: str, user: str, role: Literal["read", "write"] = "write") -> None:
        """Let another token in: of another user, or one that may only read."""
        self.tokens[token] = Account(user, role)

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, repo_type: str = "model", private: bool = False
    ) -> Repo:
        """Put a repository there without a client, for tests that only read."""
        repo = Repo(repo_id, repo_type, private)
        tree = {".gitattributes": Blob(default_gitattributes())}
        for path, data in (files or {}).items():
            tree[path] = Blob(data, lfs=repo.upload_mode(path, len(data), data[:512]) == "lfs")
            if tree[path].lfs:
                repo.lfs_objects[tree[path].sha256] = data
        repo.add_commit("main", tree, "initial commit", author=repo.owner)
        self.repos[repo.key] = repo
        return repo

    def count(self, pattern: str) -> int:
        """How many requests so far have `METHOD /path` matching a regular expression."""
        return sum(re.search(pattern, request.line) is not None for request in self.requests)

    # --- faults ------------------------------------------------------------------------------------------------------

    def fail_next(
        self,
        n: int = 1,
        status: int = 503,
        match: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        message: str = "ordered by the test",
    ) -> None:
        """Answer the next `n` matching requests with an error, without acting on them."""
        self._order(Fault("fail", n, re.compile(match), status=status, headers=headers or {}, message=message))

    def cut_next(self, n: int = 1, match: str = "", *, when: When = "request") -> None:
        """Hang up on the next `n` matching requests.

        `request`: while the request is being sent, nothing happens on the server. `reply`: the server acts on the
        request, but no answer is sent. `body`: the server acts, and hangs up in the middle of the answer's body.
        """
        self._order(Fault("cut", n, re.compile(match), when))

    def stall_next(self, n: int = 1, seconds: float = 30.0, match: str = "", *, when: When = "request") -> None:
        """Let the next `n` matching requests wait, before acting (`request`) or amid the answer (`body`)."""
        if when == "reply":
            raise ValueError("a stall is before the action (request) or in the answer (body)")
        self._order(Fault("stall", n, re.compile(match), when, seconds=seconds))

    def corrupt_next(self, n: int = 1, match: str = "") -> None:
        """Make one byte wrong, the size kept: of the answer to a GET, of the body as it arrives otherwise."""
        self._order(Fault("corrupt", n, re.compile(match)))

    def _order(self, fault: Fault) -> None:
        self.faults.add(fault)

    # --- what the routes ask -----------------------------------------------------------------------------------------

    def handle(self, call: Call) -> Answer:
        """Answer one request."""
        self.account(call)  # an unknown token is refused everywhere, even where none is needed
        answer = _api.handle(self, call) or _files.handle(self, call)
        if answer is None:
            self.unknown.append(f"{call.method} {call.path}")
            raise HubError(404, "the stand-in Hub has no such route")
        return answer

    def account(self, call: Call) -> Account | None:
        """Who is asking; None without a token."""
        kind, _, token = call.headers.get("authorization", "").partition(" ")
        if not kind:
            return None
        if kind.lower() != "bearer" or token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def writer(self, call: Call) -> Account:
        """Who is asking, if they may write at all."""
        account = self.account(call)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        if account.role != "write":
            raise HubError(403, "You must use a write token to do this")
        return account

    def repo_for(self, call: Call, repo_type: str, repo_id: str, *, write: bool) -> Repo:
        """The repository, if whoever asks may see it (and change it). A private one looks like a missing one."""
        account = self.account(call)
        repo = self.repos.get(repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}")
        if repo is None or (repo.private and (account is None or account.user != repo.owner)):
            # Without a token the Hub says 401 for both; the code is what the client goes by.
            raise HubError(401 if account is None else 404, "Repository not found", "RepoNotFound")
        if write and self.writer(call).user != repo.owner:
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repo
