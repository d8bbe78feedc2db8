"""One folder to the hub in one commit: whatever happens on the way, a repository holds all of it or nothing new.

The token is the hub's own affair (`HF_TOKEN`, or what `hf auth login` stored): it is never read here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from latentwire.errors import UserError
from latentwire.publishing.publish_settings import check_repo

ATTEMPTS = 4
WAIT = 2.0
"""Seconds before the second attempt; each further one waits twice as long."""
_REFUSED = (401, 403)


class HubUnreachable(RuntimeError):
    """The hub could not be reached, or broke off, at every attempt; nothing was published."""


@dataclass(frozen=True)
class PublishedAt:
    """Where something was published: the repository, its commit, and whether everybody can read it."""

    repo: str
    commit: str
    private: bool

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]} ({'private' if self.private else 'public'})"


def upload(
    folder: Path,
    repo: str,
    message: str,
    *,
    public: bool = False,
    log: Callable[[str], None] = print,
    api: HfApi | None = None,
) -> PublishedAt:
    """Make the repository where there is none, and put the folder's files into it in one commit.

    A broken connection is tried again: what arrived already is not sent again, since files go by their hash.

    Args:
        folder: Its files are published under their own names; others in the repository stay.
        repo: OWNER/NAME.
        message: Of the commit.
        public: Whether everybody can read a new repository. One that exists stays as it is.
        log: Called when an attempt broke off.
        api: The hub; by default the one of `HF_ENDPOINT`.

    Raises:
        UserError: The name is none, there is no token, or the hub refuses it.
        HubUnreachable: No attempt came through.
    """
    check_repo(repo)
    hub = api or HfApi(library_name="latentwire")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            hub.create_repo(repo, private=not public, exist_ok=True)
            commit = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
            return PublishedAt(repo, str(commit.oid), bool(hub.model_info(repo).private))
        except LocalTokenNotFoundError as error:
            raise _no_token() from error
        except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
            if (refusal := _refusal(error, repo)) is not None:
                raise refusal from None  # the hub's own message would quote the request
            if not _broke_off(error):
                raise
            if attempt == ATTEMPTS:
                raise HubUnreachable(
                    f"{repo}: the connection to the hub broke off {ATTEMPTS} times ({_cause(error)}); nothing was "
                    "published, and the same command sends only what has not arrived"
                ) from None
            log(f"the connection to the hub broke off ({_cause(error)}); attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    for each in _chain(error):
        if isinstance(each, HfHubHTTPError) and getattr(each, "response", None) is not None:
            return int(each.response.status_code)
    return None


def _refusal(error: BaseException, repo: str) -> UserError | None:
    status = _status(error)
    if status in _REFUSED:
        if get_token() is None:
            return _no_token()
        return UserError(
            f"token: found one that the hub refuses for {repo} (status {status}), expected one with the right to "
            "write there; set HF_TOKEN, or log in with: hf auth login."
        )
    if status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429):
        return UserError(f"repo: the hub refuses {repo} with status {status}, expected a repository it takes.")
    return None


def _no_token() -> UserError:
    return UserError("token: found none, expected one of the hub; set HF_TOKEN, or log in with: hf auth login.")


def _broke_off(error: BaseException) -> bool:
    status = _status(error)
    return (status is not None and (status >= 500 or status in (408, 409, 412, 429))) or any(
        isinstance(each, httpx.TransportError | ConnectionError | TimeoutError) for each in _chain(error)
    )


def _cause(error: BaseException) -> str:
    status = _status(error)
    return f"status {status}" if status else type(_chain(error)[-1]).__name__
