"""Downloads from and uploads to the Hugging Face hub, with the cache, offline mode and token of its own library.

A hub id is `user/name`, or `user/name@revision` with a branch, a tag or a commit; "/" in one is written %2F. Without a
connection there are no retries: the cache is used, and a file that it lacks is an error at once.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from var_toolkit.formats.directory import FOLDERS, INDEX
from var_toolkit.formats.json_files import read_json
from var_toolkit.formats.safetensors_files import WEIGHTS_INDEX, shards
from var_toolkit.registry import CARD, CONFIG, WEIGHTS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")
PATIENCE = 5  # seconds
COMMON = (
    ".gitattributes",
    ".gitignore",
    CARD,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)  # in a repository without a model
LOGIN = (
    "log in with `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"
)


def download(repository: str, filename: str) -> Path:
    """The local path of a file of a hub id; downloaded once, then found in the cache.

    A fresh download is checked against the hub's SHA-256 where the hub gives one. ValueError in one line if the file
    cannot be downloaded; HF_HUB_OFFLINE=1 forbids the network.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    name, revision = split_revision(repository)
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if isinstance(cached, str) and revision is not None and COMMIT.fullmatch(revision):
        return Path(cached)
    with _asked(f"{repository}/{filename}", repository):
        path = Path(hf_hub_download(name, filename, revision=revision, local_files_only=not reachable()))
    if str(path) != cached:  # new, perhaps because the branch has moved
        _check(path, f"{repository}/{filename}")
    return path


def download_network(repository: str, subfolder: str) -> Path:
    """The local folder of a network's configuration and weights, which may be in shards. ValueError as `download`."""
    folder = download(repository, str(Path(subfolder) / CONFIG)).parent
    try:
        download(repository, str(Path(subfolder) / WEIGHTS))
    except ValueError as whole:
        try:
            index = download(repository, str(Path(subfolder) / WEIGHTS_INDEX))
        except ValueError:
            raise whole from None
        for shard in shards(index):
            download(repository, str(Path(subfolder) / shard))
    return folder


def download_folder(repository: str, folder: str) -> Path:
    """The local path of a folder of a hub id with all its files, such as shards. ValueError as `download`."""
    from huggingface_hub import snapshot_download

    name, revision = split_revision(repository)
    wanted, what = f"{folder.rstrip('/')}/*", f"{repository}/{folder}"
    with _asked(what, repository):
        home = snapshot_download(name, revision=revision, allow_patterns=[wanted], local_files_only=not reachable())
    if not (found := Path(home) / folder).is_dir():
        raise ValueError(f"{what} cannot be downloaded: the repository has no such folder")
    return found


def snapshot(repository: str, weights: bool = True) -> Path:
    """The local folder of a model directory on the hub, without its weights if they are not needed.

    ValueError in one line if it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    name, revision = split_revision(repository)
    wanted = ["*.json", CARD, *(["*.safetensors"] if weights else [])]
    with _asked(repository, repository):
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=not reachable()))


def reachable() -> bool:
    """Whether the hub answers within seconds. The hub's library would try five times and print a warning each time."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of whichever HTTP client the hub's library has
        return False
    return True


@contextmanager
def _asked(what: str, repository: str) -> Iterator[None]:
    """Turn any error of a download into a ValueError of one line, and silence the library's own messages."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{what} is not in the cache and the hub cannot be reached; "
            "connect to the network to download it once, or convert a local file with `vargen convert`"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{what} cannot be downloaded: {_why(error, repository)}") from None
    finally:
        logger.setLevel(before)


def is_hub_id(source: str) -> bool:
    """Whether a source that is not a directory reads user/name, perhaps with a revision behind an @.

    If `user` is an existing folder, it is a mistyped path.
    """
    owner, _, name = source.partition("@")[0].partition("/")
    return bool(owner and name) and "/" not in name and owner[0] not in ".~" and not Path(owner).is_dir()


def split_revision(source: str) -> tuple[str, str | None]:
    """user/name and the revision after the @, None if there is no @. ValueError if the revision is empty."""
    name, at, revision = source.partition("@")
    if at and not revision:
        raise ValueError(
            f"{source!r} names no revision behind the @; give a branch, a tag or a commit, or remove the @"
        )
    return name, unquote(revision) or None


def with_revision(repository: str, revision: str | None) -> str:
    """user/name@revision, or user/name without a revision: the inverse of `split_revision`."""
    return repository if revision is None else f"{repository}@{quote(revision, safe='')}"


def at_revision(source: str, revision: str) -> str:
    """A hub id at a revision. ValueError if the source is no hub id, or has one already."""
    if Path(source).is_dir() or not is_hub_id(source):
        raise ValueError(f"revision {revision!r} is for a hub id user/name; {source!r} is not one")
    if "@" in source:
        raise ValueError(f"{source!r} has a revision already, and revision is {revision!r}; give one of them")
    return with_revision(source, revision)


def upload(
    repository: str,
    write: Callable[[Path], None],
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload what `write` puts into a temporary folder to a hub id, and return the address of the commit.

    Repository and branch are created if they do not exist; `private` applies to a new repository. A model card in the
    repository that was written by hand is preserved. ValueError in one line if the hub refuses, or if the repository
    holds anything but a model of this package, whose files would be replaced: this is checked before anything is
    written.
    """
    api = may_upload(repository, token)
    with _in_one_line(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        _require_ours(api, repository, revision)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
    with TemporaryDirectory(prefix="vargen-push-") as temporary:
        with _in_one_line(repository):
            has_own_card = _card_by_hand(api, repository, revision, Path(temporary) / "there")
        folder = Path(temporary) / "model"
        write(folder)
        with _in_one_line(repository):
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=commit_message or "Upload with var_toolkit",
                revision=revision,
                ignore_patterns=[CARD] if has_own_card else None,
                delete_patterns=[f"{part}/*" for part in FOLDERS],  # parts that the model no longer has
            )
    return str(done.commit_url)


def may_upload(repository: str, token: str | None = None) -> HfApi:
    """The hub with the user's token. ValueError in one line without a token, offline, or for an invalid name.

    No request is made: the first one shows whether the token may write to the repository.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{repository!r} is not a hub id; give user/name of letters, digits, '-', '_' and '.' "
            "(and a branch as the revision)"
        )
    if HF_HUB_OFFLINE:
        raise ValueError(f"{repository} cannot be written while HF_HUB_OFFLINE is set; unset it and connect")
    known = token or get_token()
    if known is None:
        raise ValueError(f"{repository} cannot be written without a token; {LOGIN}")
    return HfApi(token=known)


@contextmanager
def _in_one_line(repository: str) -> Iterator[None]:
    """Turn any error of a request to the hub into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # the hub's library has changed its HTTP client twice, and each has errors of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = {
            401: f"the hub refuses the token; {LOGIN}",
            403: f"this token may not write there; use your own name, or {LOGIN}",
        }.get(status or 0, _why(error, repository))
        raise ValueError(f"{repository} cannot be written: {why}") from None


def _require_ours(api: HfApi, repository: str, revision: str | None) -> None:
    """ValueError in one line for a repository with files that `push` would not have written.

    A branch that does not exist yet will be created from the main one.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError

    with TemporaryDirectory(prefix="vargen-push-") as folder:
        try:
            found = api.hf_hub_download(repository, INDEX, revision=revision, local_dir=folder)
            ours = _is_ours(Path(found))
        except RevisionNotFoundError:
            return None if revision is None else _require_ours(api, repository, None)
        except LocalEntryNotFoundError:  # the connection is gone, which says nothing of the file
            raise
        except EntryNotFoundError:
            ours = False
    files = [] if ours else [file.rfilename for file in api.model_info(repository, revision=revision).siblings or []]
    if foreign := [file for file in files if file not in COMMON]:
        raise ValueError(
            f"it holds {foreign[0]!r} and is not a model of var_toolkit; pushing would replace its files: "
            "choose a new repository"
        )
    return None


def _is_ours(index: Path) -> bool:
    """Whether a model_index.json names a backbone of this package."""
    try:
        backbone = read_json(index).get("backbone")
    except ValueError:
        return False
    return isinstance(backbone, list) and backbone[:1] == ["var_toolkit"]


def _why(error: Exception, repository: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision = split_revision(repository)
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision or 'main'!r}; give a branch, a tag or a commit of it"
    if isinstance(error, GatedRepoError):
        return f"access to it must be requested at https://huggingface.co/{name}; then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "it does not exist on the hub, or it is private: check the name, or log in with `hf auth login`"
    if type(error) is ValueError:  # the hub's library reports the faults of a card so, one per line
        return " ".join(str(error).split())
    cause = error.__cause__ or error  # errors of threads come wrapped
    told = getattr(cause, "server_message", None) or str(cause) or type(cause).__name__
    return str(told).splitlines()[0]


def _card_by_hand(api: HfApi, repository: str, revision: str | None, folder: Path) -> bool:
    """Whether the model card on the hub was written by hand.

    It is read into `folder`: in the cache it would record the present state of the branch, which offline users would
    then get.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from var_toolkit.formats.facts import by_hand

    try:
        found = api.hf_hub_download(repository, CARD, revision=revision, local_dir=folder)
    except LocalEntryNotFoundError:  # the connection is gone, which says nothing of the card
        raise
    except EntryNotFoundError:
        return False
    return by_hand(Path(found).read_text(encoding="utf-8")) is not None


def _check(path: Path, name: str) -> None:
    """Compare a large file with its SHA-256, under which the cache stores it; ValueError and removal if they differ."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"{name} arrived damaged (SHA-256 {found[:12]}…, the hub says {blob.name[:12]}…); try again")
