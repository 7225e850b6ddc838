"""Push a folder to the Hugging Face Hub, and say in a user's words what went wrong.

The client (``huggingface_hub``) finds the token and the server itself (``HF_TOKEN``, the login of ``hf auth login``,
``HF_ENDPOINT``): no token passes through this code. It retries uploads of files, but neither the creation of a
repository nor the commit (read in 2.4.0), so those are retried here; both may be repeated safely, for an existing
repository is fine and an unchanged file makes no commit.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import UcllmError
from pipeline.i18n import _

#: Seconds waited before each new try.
WAITS_S = (1.0, 2.0, 4.0, 8.0)
#: The longest that a server's ``Retry-After`` is obeyed, in seconds.
LONGEST_WAIT_S = 60.0
#: Timeout, too many requests, and the server's own troubles.
_PASSING = (408, 429, 500, 502, 503, 504)

Result = TypeVar("Result")
Note = Callable[[str], None]


def _without_login(address: str) -> str:
    """The address without the ``user:password@`` that a mirror's may carry: it goes to manifests and the terminal."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True)
class Pushed:
    """Where a folder is now. ``changed`` is false when all of it was there already."""

    url: str
    commit: str
    changed: bool


def prepare() -> None:
    """Must come before anything imports ``huggingface_hub``, which reads its variables once.

    Only the Hub itself has the Xet storage, and the client uses it without asking; every server has LFS.
    """
    if os.environ.get("HF_ENDPOINT"):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def sign_in(repo: str, note: Note) -> str:
    """The name of the user whose token will push to ``repo``.

    Asked before the work and not after it, so that a token that is not accepted is found early. Raises
    :class:`UcllmError` for that, for no token, offline mode and an impossible name.
    """
    prepare()
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if constants.HF_HUB_OFFLINE:
        raise UcllmError(
            "hub.offline",
            _("Cannot publish to {repo}: HF_HUB_OFFLINE is set.").format(repo=repo),
            _("Nothing was sent."),
            _("Unset HF_HUB_OFFLINE, or leave out the repository."),
        )
    if not get_token():
        raise _not_logged_in(_("There is no token."))
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UcllmError(
            "hub.bad-name",
            _("`{repo}` cannot be the name of a repository.").format(repo=repo),
            str(error).splitlines()[0],
            _("Use `NAME` or `USER/NAME`: letters, digits, `-`, `_` and `.`."),
        ) from error
    return str(retried(lambda: HfApi().whoami(), repo, note)["name"])


def full_name(repo: str, user: str) -> str:
    """``user/name``; a name alone is the user's own, and no name stays none."""
    return repo if "/" in repo or not repo else f"{user}/{repo}"


def push(folder: Path, repo: str, *, private: bool, message: str, note: Note) -> Pushed:
    """Create ``repo`` (``user/name``) where it is missing and make it hold ``folder``, in one commit.

    Files that are there already are not sent again. Raises :class:`UcllmError`; among others when ``private`` is asked
    for and the repository is public: it is not for this program to publish what was meant to be private.
    """
    prepare()
    from huggingface_hub import HfApi

    api = HfApi()
    retried(lambda: api.create_repo(repo, private=private, exist_ok=True), repo, note)
    before = retried(lambda: api.model_info(repo), repo, note)
    if private and not before.private:
        raise UcllmError(
            "hub.public",
            _("{repo} is public, and a private upload was asked for.").format(repo=repo),
            _("Nothing was sent."),
            _("Add `--set upload.private=false` to publish to it, or name another repository."),
        )
    if not private and before.private:
        note(_("{repo} exists and is private; it stays so.").format(repo=repo))
    sent = retried(lambda: api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message), repo, note)
    commit = str(sent.oid)
    return Pushed(f"{_without_login(api.endpoint)}/{repo}", commit, commit != before.sha)


def retried(call: Callable[[], Result], repo: str, note: Note) -> Result:
    """``call()``, again after a while when the server or the connection fails; other failures at once."""
    for wait in (*WAITS_S, None):
        try:
            return call()
        except Exception as error:
            if wait is None or not _may_pass(error):
                raise explain(error, repo) from error
            seconds = _retry_after(error) or wait
            reason = str(status_of(error) or type(error).__name__)
            text = _("The Hub did not answer ({reason}); next try in {seconds} s.")
            note(text.format(reason=reason, seconds=seconds))
            time.sleep(seconds)
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of the client, of any of its generations."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("Retry-After", "")), LONGEST_WAIT_S)
    except ValueError:  # none, or a date
        return None


def _connection_failed(error: BaseException) -> bool:
    """Whether no whole answer came. The client has used requests, httpx and httpx2, and wraps what they raise."""
    names = {each.__name__ for kind in _chain(error) for each in type(kind).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "Timeout", "TimeoutError", "ChunkedEncodingError"})


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__
    return chain


def _may_pass(error: BaseException) -> bool:
    status = next((found for found in map(status_of, _chain(error)) if found is not None), None)
    return status in _PASSING if status is not None else _connection_failed(error)


def _not_logged_in(why: str) -> UcllmError:
    return UcllmError(
        "hub.not-logged-in",
        _("The Hub does not know who you are."),
        why,
        _("Run `hf auth login` with a token that may write, or set HF_TOKEN, then run the same command again."),
    )


def explain(error: BaseException, repo: str) -> UcllmError:
    """A failure of the client as what, why and hint. The texts of the client hold addresses but no token."""
    status = next((found for found in map(status_of, _chain(error)) if found is not None), None)
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if status == 401:
        return _not_logged_in(_("It refused the token (401)."))
    if status == 403:
        return UcllmError(
            "hub.forbidden",
            _("Your token may not write to {repo}.").format(repo=repo),
            why,
            _("Make a token with write access and run `hf auth login`, or name a repository of your own."),
        )
    if status is None and _connection_failed(error):
        return UcllmError(
            "hub.unreachable",
            _("The Hub could not be reached."),
            why,
            _("Check the network and HF_ENDPOINT, then run the same command again; what was sent is not sent twice."),
        )
    if status in _PASSING:
        hint = _("Wait a while, then run the same command again; what was sent is not sent twice.")
        return UcllmError("hub.unavailable", _("The Hub has a trouble of its own."), why, hint)
    return UcllmError("hub.refused", _("The Hub refused the upload to {repo}.").format(repo=repo), why)
