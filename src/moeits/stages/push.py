"""A checkpoint of moeits -> a model on the hub, in one commit, private unless it is said otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.replaceable import why_not_ours
from moeits.errors import CheckpointError, OutputError, SettingError

REPORT_NAME = "report.html"
# In the card's examples of how to load it, for whoever holds the folder.
_PLACE = '"PATH"'
_NEEDED = ("library_name", "license")
_EXISTS, _MAY_NOT = (409,), (401, 403, 404)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was put on the hub."""

    repository: str
    url: str
    """Of the commit."""
    private: bool
    """As it was asked for: a repository that was there before stays as it was."""
    files: tuple[str, ...]
    nbytes: int


def push(
    model: str | Path,
    repository: str,
    *,
    report: str | Path | None = None,
    public: bool = False,
    overwrite: bool = False,
) -> Pushed:
    """Put a checkpoint that moeits made on the hub, with its card, its plan and on request a report, in one commit.

    `model` is a local folder, `repository` a name such as org/name, which is made, private unless `public`. The card is
    checked before anything is sent, and its examples name the repository. What the hub has under that name already is
    added to with `overwrite` only.

    Raises CheckpointError for what is not a checkpoint of moeits or has no card that the hub could read, SettingError
    without a token or for a name that the hub cannot have, OutputError for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(model)
    card = _checked(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise SettingError(f"{repository} is not a name that the hub can have: give one such as org/name.") from None
    page = None if report is None else _page(Path(report))
    if get_token() is None:
        raise SettingError("There is no token for the hub. Log in with `hf auth login`, or set HF_TOKEN.")
    sent: dict[str, Any] = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    sent["README.md"] = card.replace(_PLACE, f'"{repository}"').encode("utf-8")
    if page is not None:
        sent[REPORT_NAME] = page
    hub = HfApi()
    with _told(repository):
        made = hub.create_repo(repository, private=not public, exist_ok=overwrite)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=sent[name]) for name in sorted(sent)]
        commit = hub.create_commit(made.repo_id, operations, commit_message="A checkpoint made by moeits")
    nbytes = sum(each.stat().st_size if isinstance(each, Path) else len(each) for each in sent.values())
    url = str(getattr(commit, "commit_url", made))
    return Pushed(repository=made.repo_id, url=url, private=not public, files=tuple(sorted(sent)), nbytes=nbytes)


def _checked(folder: Path) -> str:
    """The card of a checkpoint that can be put on the hub. Raises CheckpointError."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # huggingface_hub brings it

    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}: push takes a checkpoint on this machine.")
    if (why := why_not_ours(folder)) is not None or not any(folder.iterdir()):
        raise CheckpointError(f"{folder} {why or 'is empty'}: push sends what moeits made, and nothing else.")
    Checkpoint.open(folder)
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except (OSError, ValueError, YAMLError, RecursionError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"The card of {folder} (README.md) is not one that the hub reads: {said}.") from None
    if lacking := [key for key in _NEEDED if not front.get(key)]:
        raise CheckpointError(
            f"The card of {folder} says no {' and no '.join(lacking)}: add the line to the front matter of its "
            "README.md, as the unpruned model has it."
        )
    return text


def _page(path: Path) -> Path:
    if not path.is_file():
        raise SettingError(f"There is no report {path}. Make one with: moeits report RUN --output {path}")
    return path


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """What the hub, or the way to it, refuses becomes an OutputError."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of whichever HTTP library this huggingface_hub stands on; its names differ between versions.
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        yield
    except (OSError, ValueError, http_error) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _EXISTS:
            raise OutputError(
                f"{repository} is on the hub already. Choose another name, or give --overwrite."
            ) from None
        if status in _MAY_NOT:
            raise OutputError(
                f"The hub does not let this token write to {repository}: use one with the right to write there."
            ) from None
        said = " ".join(str(error).split())[:200]
        raise OutputError(f"{repository} cannot be put on the hub: {said.rstrip('.')}.") from None
