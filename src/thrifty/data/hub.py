"""Models from the Hugging Face hub: weights as safetensors, tokenizer and configuration, nothing that runs code."""

from __future__ import annotations

import functools
import http.client
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from thrifty.core.errors import NotFoundError

log = logging.getLogger("thrifty")

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_TIMEOUT = 4.0  # seconds to wait for the hub's first answer
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubSilentError(NotFoundError):
    """The hub could not be asked: offline by request, no network, or no answer in time."""


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``."""
    return _HUB_ID.fullmatch(name) is not None


def forget_silence() -> None:
    """Ask the hub again, although it did not answer earlier in this process."""
    _probe.cache_clear()


@functools.cache
def _probe() -> str | None:
    """Why the hub can't be asked, or None; asked once per process so that offline work never waits twice."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import constants

    question = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  (https, or what HF_ENDPOINT says)
    try:
        urllib.request.urlopen(question, timeout=_TIMEOUT).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}" if error.code >= 500 else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"no connection: {getattr(error, 'reason', error)}"
    return None


def download(name: str, folder: Path, *, revision: str | None = None) -> str:
    """Copy a model's safe files from the hub into ``folder``.

    Parameters
    ----------
    name
        ``owner/name``.
    folder
        An existing empty folder.
    revision
        Branch, tag or commit; None for the default branch.

    Returns
    -------
    str
        In words, where it came from.

    Raises
    ------
    HubSilentError
        If the hub does not answer.
    NotFoundError
        If it answers that there is no such model, or the model has no safetensors.
    """
    silent = _probe()
    if silent is not None:
        raise HubSilentError(silent)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    log.info("downloading %s from the Hugging Face hub", name)
    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=list(FILES), etag_timeout=_TIMEOUT)
    except GatedRepoError as error:
        raise NotFoundError(f"{name} is gated on the hub: accept its licence there and run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"{name} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"the hub has no model {name!r}: check its spelling, or `hf auth login` if it is private"
        ) from error
    except Exception as error:
        # Network errors come from the hub's client or the HTTP library under it, whose name changes with its version.
        if type(error).__module__.partition(".")[0] in ("builtins", "safetensors"):
            raise
        raise HubSilentError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own bookkeeping
    if not any(folder.rglob("*.safetensors")):
        raise NotFoundError(f"{name} has no safetensors weights on the hub; other formats are not loaded")
    return f"the Hugging Face hub ({name})"
