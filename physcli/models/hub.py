"""Downloads that fail, explained: offline, gated, misspelt, cut off."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from physcli.errors import DataError, ModelError

Repository = Literal["model", "dataset"]

# huggingface_hub has used requests and httpx; their connection errors are OSErrors in the one and not in the other.
_NETWORK_MODULES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})

_ELSEWHERE = (
    "on a machine with network, `hf download {name}{option} --local-dir FOLDER`, copy the folder here and pass its path"
)
_LOG_IN = "`hf auth login`, or set HF_TOKEN to a token of an account that may read it"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: transformers and diffusers wrap the hub's errors in a plain OSError."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _is_network(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or module in _NETWORK_MODULES


def first_line(error: BaseException) -> str:
    """What an error says first, and what follows a colon there: libraries' messages run to many lines."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


def explain(name: str, error: BaseException, what: Repository = "model") -> ModelError | DataError:
    """The error that says what `error` means for the model or dataset called `name`, and what to do next."""
    chain = _chain(error)

    def among(*classes: type[BaseException]) -> bool:
        return any(isinstance(link, classes) for link in chain)

    is_model = what == "model"
    kind = ModelError if is_model else DataError
    page = f"https://huggingface.co/{'' if is_model else 'datasets/'}{name}"
    elsewhere = _ELSEWHERE.format(name=name, option="" if is_model else " --repo-type dataset")
    statuses = {_status(link) for link in chain}
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return kind(
            f"The disk is full: {name} could not be stored.",
            expected=f"room for the whole {'checkpoint' if is_model else what} in the Hugging Face cache",
            fix="free some space, or point HF_HOME at a larger disk",
        )
    if among(GatedRepoError):  # a subclass of RepositoryNotFoundError, so it comes first
        return kind(
            f"{name} is gated: its owners let only accounts that accepted its licence download it.",
            expected="a token of such an account",
            fix=f"accept the licence at {page}, then {_LOG_IN}",
        )
    if among(RevisionNotFoundError):
        return kind(
            f"{name} has no such revision.",
            expected="a branch, tag or commit of that repository",
            fix=f"look at {page}/commits, or leave the revision out",
        )
    if any(isinstance(link, EntryNotFoundError) and _status(link) for link in chain):
        return kind(
            f"{name} lacks a file that this kind of {what} needs: {first_line(error)}",
            expected="a diffusers pipeline or a transformers encoder" if is_model else "the files of its own listing",
            fix="`physcli models ls` shows what is known to work" if is_model else f"look at {page}",
        )
    if among(RepositoryNotFoundError, HFValidationError) or 404 in statuses:
        # The hub answers "not found" for a private repository too, so that its existence does not leak.
        if not is_model:
            return DataError(
                f"There is no dataset {name!r} on the Hugging Face hub (or it is private).",
                expected="hub:OWNER/NAME of a dataset repository",
                fix=f"check the spelling; for a private dataset, {_LOG_IN}",
            )
        return ModelError(
            f"There is no model {name!r} on the Hugging Face hub (or it is private), and no such folder here.",
            expected="a built-in name, a hub id written ORGANISATION/NAME, or an existing folder",
            fix=f"check the spelling with `physcli models ls`; for a private model, {_LOG_IN}",
        )
    if statuses & {401, 403}:
        return kind(
            f"The Hugging Face hub refused access to {name} (HTTP 401 or 403).",
            expected="a valid token with read access",
            fix=f"{_LOG_IN}; a licence may have to be accepted at {page}",
        )
    if among(OfflineModeIsEnabled):
        return kind(
            f"{name} is not in the local cache, and HF_HUB_OFFLINE forbids downloading it.",
            expected=f"a {what} that was downloaded before",
            fix=f"unset HF_HUB_OFFLINE, or {elsewhere}",
        )
    if any(_is_network(link) for link in chain):
        return kind(
            f"{name} is not in the local cache, and the Hugging Face hub could not be reached.",
            expected=f"a network connection, or a {what} that was downloaded before",
            fix=f"try again later, or {elsewhere} (HF_HUB_OFFLINE=1 skips the waiting)",
        )
    if among(LocalEntryNotFoundError):
        return kind(
            f"{name} is not, or not wholly, in the local cache, and downloading is switched off.",
            expected=f"a {what} that was downloaded before",
            fix=f"allow downloads, or {elsewhere}",
        )
    return kind(
        f"{name} could not be loaded: {first_line(error)}",
        expected="a whole checkpoint in diffusers or transformers layout" if is_model else "a whole download",
        fix="download or copy it again",
    )


@contextmanager
def explain_hub_errors(name: str, what: Repository = "model") -> Iterator[None]:
    """Turn any failure to download or read `name` into an error with the next step.

    Args:
        name: The hub id or folder, as the user wrote it.
        what: Which kind of repository it is.

    Raises:
        ModelError: (of a dataset: DataError) offline, unreachable, gated (401/403), no such repository, revision or
            file, full disk, or any other OSError of huggingface_hub, transformers or diffusers. Other exceptions pass
            through.
    """
    try:
        yield
    except (OSError, HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        raise explain(name, error, what) from error
