"""Checkpoints on the Hugging Face hub: downloads "org/name" or "org/name@revision" to a folder in the hub's cache.

huggingface_hub does the downloads: to its cache (HF_HOME), from HF_ENDPOINT, with the user's token, and none if
HF_HUB_OFFLINE is set. Interrupted downloads resume; a restart fetches only incomplete files. Only files that a
conversion reads are fetched: no pickles, no weights in other formats.
"""

from __future__ import annotations

import errno
import re
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from lowbit.base.errors import Error, FileError, UnsupportedError
from lowbit.base.paths import AnyPath, checked, is_file, status
from lowbit.base.progress import INTERVAL_SECONDS, ProgressLike, steps
from lowbit.base.quoting import quoted, reason
from lowbit.hf.checkpoint import PICKLES, SINGLE, SMALL_FILES, read_json, weight_files

#: Weight files: a single file, and files without an index.
SINGLE_FILES = [SINGLE, "adapter_model.safetensors"]
OTHER_FILES = ["model*.safetensors"]

#: Seconds to wait for a cancelled download: it ends when the next bytes arrive.
_SECONDS_TO_END = 2.0

_PART = r"[A-Za-z0-9_-][\w.-]*"
_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def resolve(source: AnyPath, weights: bool = True, progress: ProgressLike = None) -> tuple[Path, str | None]:
    """The folder of a path, "org/name" or "org/name@revision", and the hub id if `source` was one.

    An existing path takes precedence. Without `weights`, only the small files are guaranteed. Raises InputError for an
    invalid path, FileError for a missing path or a failed download, UnsupportedError if the repository has only
    pickles.
    """
    text = checked(source)
    path, match = Path(text), _ID.fullmatch(text)
    if match is None or status(path):
        return path, None
    repository, revision = match["id"], match["revision"]
    folder = _download(repository, revision, SMALL_FILES + (SINGLE_FILES if weights else []), progress)
    if weights:
        config = read_json(folder / "config.json") if is_file(folder / "config.json") else {}
        names = weight_files(folder, config).names or SINGLE_FILES[1:]
        if missing := [name for name in names if not is_file(folder / name)]:
            shards = OTHER_FILES if missing == SINGLE_FILES[1:] else missing
            _download(repository, folder.name, shards, progress)  # the folder's name is the commit
        if not any(folder.glob("*.safetensors")):
            raise _without_weights(repository, folder.name)
    return folder, repository


def _download(repository: str, revision: str | None, patterns: list[str], progress: ProgressLike) -> Path:
    """Downloads in another thread, so that `progress` is called in this one. An exception here cancels the download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    # Bars that count bytes. The client may have one for received and one for written bytes; over plain HTTP both count
    # the same bytes (findings/huggingface-hub-two-byte-bars.sh).
    bars: list[Bar] = []
    is_over = threading.Event()

    class Bar(tqdm):
        """Counts without showing a bar."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self.num = 0
            if options.get("unit") == "B":
                bars.append(self)

        def update(self, n: float | None = 1) -> None:
            self.num += int(n or 0)
            if is_over.is_set():
                raise RuntimeError("the download was cancelled")

    future: Future[Path] = Future()

    def work() -> None:
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, tqdm_class=Bar)
            future.set_result(Path(folder))
        except BaseException as error:  # reraised in the calling thread
            future.set_exception(error)

    with steps(f"download {repository}", "B", progress) as advance:
        threading.Thread(target=work, name="lowbit-download", daemon=True).start()
        try:
            while not wait([future], INTERVAL_SECONDS).done:
                if total := max((int(bar.total or 0) for bar in bars), default=0):
                    advance(max(bar.num for bar in bars), total)
            if total := max((bar.num for bar in bars), default=0):
                advance(total, total)
        except BaseException:
            is_over.set()
            wait([future], _SECONDS_TO_END)
            raise
    try:
        return future.result()
    except Exception as error:  # of the client or of its HTTP library
        raise _explained(repository, revision, error) from None


def _explained(repository: str, revision: str | None, error: Exception) -> Error:
    """The error of a failed download, with advice."""
    from huggingface_hub import constants, errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return FileError(
            f"access requires accepting its owners' conditions: do that on {page}, then {log_in}",
            path=repository,
            errno=errno.EACCES,
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileError(
            f"no such folder, and no such model on the hub; if it is private, {log_in}",
            path=repository,
            errno=errno.ENOENT,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileError(
            f"the hub has no revision {quoted(revision)} of this model", path=repository, errno=errno.ENOENT
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        why = f"{constants.ENDPOINT} failed: {reason(error.__cause__ or error)}"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why
        return FileError(
            f"no such folder, incomplete in the cache {constants.HF_HUB_CACHE}, and {why}", path=repository
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FileError.of(error, repository, rest=f": {constants.HF_HUB_CACHE} (set HF_HOME to use another folder)")
    return FileError(f"the download from the hub failed: {reason(error)}", path=repository)


def _without_weights(repository: str, commit: str) -> Error:
    """The error for a repository without weights."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository, revision=commit)
    except Exception as error:  # as above
        return _explained(repository, commit, error)
    if any(name.endswith(PICKLES) for name in names):
        return UnsupportedError(
            f"it has only pickles ({', '.join(PICKLES)}), and loading a pickle can run code; "
            "https://huggingface.co/spaces/safetensors/convert proposes safetensors to its owners; then use "
            f"{repository}@refs/pr/N",
            path=repository,
        )
    if files := [name for name in names if name.endswith(".gguf")]:
        return UnsupportedError(
            f"it has only GGUF files: `hf download {repository} {files[0]}` fetches one, and lowbit runs it",
            path=repository,
        )
    return FileError("it has no model.safetensors", path=repository, errno=errno.ENOENT)
