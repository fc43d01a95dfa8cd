"""Files from a model hub, through huggingface_hub: its cache, its progress bar, its offline switch, its token."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def download(repository: str, filename: str, revision: str | None = None) -> Path:
    """The local path of a file of a hub repository; downloaded once, then found in the cache.

    A fresh download is checked against the hub's SHA-256 where the hub gives one. ValueError in one line if the file
    cannot be had; HF_HUB_OFFLINE=1 forbids the network.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = isinstance(try_to_load_from_cache(repository, filename, revision=revision), str)
    try:
        path = Path(hf_hub_download(repository, filename, revision=revision))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{repository}/{filename} is not in the cache and the hub cannot be reached; "
            "connect once to download it, or convert a local file with `vargen convert`"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{repository}/{filename} cannot be downloaded: {str(error).splitlines()[0]}") from None
    if not known:
        _check(path, f"{repository}/{filename}")
    return path


def snapshot(repository: str, weights: bool = True) -> Path:
    """The local folder of a model directory on the hub, without its weights if they are not needed.

    ValueError in one line if it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *(["*.safetensors"] if weights else [])]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{repository} is not in the cache and the hub cannot be reached; connect once to download it"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{repository} cannot be downloaded: {str(error).splitlines()[0]}") from None


def is_hub_id(source: str) -> bool:
    """Whether a source that is no directory reads user/name; below a folder that is there it is a mistyped path."""
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and owner[0] not in ".~" and not Path(owner).is_dir()


def _check(path: Path, name: str) -> None:
    """Large files are stored in the cache under their SHA-256; a file that does not match it is removed."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"{name} arrived damaged (SHA-256 {found[:12]}…, the hub says {blob.name[:12]}…); try again")
