"""Checkpoints that live on the Hugging Face hub, by way of huggingface_hub.

HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured because huggingface_hub honours them; there is no cache of our own.
Not run against a live hub: the machine this was built on has none. The tests replace the hub's two calls.

What is fetched is listed in `parts.py`, which is the list of what is copied from a folder too.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from moeits.checkpoint.parts import SMALL_FILES, WEIGHTS, in_any_case
from moeits.checkpoint.side_code import code_files
from moeits.errors import CheckpointError, SettingError

OTHER_FORMATS = ("original/*", "onnx/*", "metal/*", "consolidated*")

# As the hub has them; a path such as ./model or ../model is none.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def download(
    model: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    needs_code: Callable[[Path], bool | None] = lambda _: None,
) -> tuple[Path, str]:
    """Folder of a hub model's files, and its name with the resolved commit (`org/name@commit`).

    Without `weights` only the small files are fetched. Code that the tokenizer names is fetched to be copied; it is
    never run. Code of the model is fetched only where transformers has no class for it: `needs_code` says so of its
    small files, where more is known of it than its config.json says. Raises CheckpointError if `model` is not a hub id,
    or if the hub does not give it.
    """
    _check_id(model)
    with _refusals_as_sentences(model, revision):
        folder = _fetch(model, revision, [*SMALL_FILES, *([WEIGHTS] if weights else [])])
        of_model, missing = needs_code(folder), list[str]()
        # Which files its code imports is known only when it is there.
        while (needed := _not_there(folder, of_model)) != missing:
            missing = needed
            _fetch(model, folder.name, missing)
    return folder, f"{model}@{folder.name}"


def _not_there(folder: Path, of_model: bool | None) -> list[str]:
    return [name for name in code_files(folder, of_model=of_model) if not (folder / name).exists()]


def _fetch(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [in_any_case(pattern) for pattern in patterns]
    return Path(snapshot_download(model, revision=revision, allow_patterns=wanted, ignore_patterns=list(OTHER_FORMATS)))


def weight_headers(model: str, commit: str) -> dict[str, dict[str, dict[str, Any]]] | None:
    """The headers of a hub model's weight files, kilobytes each: file -> tensor -> dtype, shape and data_offsets.

    None where the hub may not be asked (HF_HUB_OFFLINE). Raises CheckpointError as `download` does.
    """
    from huggingface_hub import constants, get_safetensors_metadata

    if constants.HF_HUB_OFFLINE:
        return None
    with _refusals_as_sentences(model, commit):
        found = get_safetensors_metadata(model, revision=commit)
    return {
        file: {
            name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
            for name, tensor in header.tensors.items()
        }
        for file, header in sorted(found.files_metadata.items())
    }


def check_online() -> None:
    """The hub may be asked. Raises SettingError where HF_HUB_OFFLINE says that it may not."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SettingError("--stream reads from the hub, and HF_HUB_OFFLINE is set. Unset it, or leave --stream out.")


def _check_id(model: str) -> None:
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"There is no folder {model!r}, and it is not a hub id (org/name) either. Check the path."
        )


@contextmanager
def _refusals_as_sentences(model: str, revision: str | None) -> Iterator[None]:
    """What the hub, or the way to it, refuses becomes a CheckpointError."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    # The base class of whichever HTTP library this huggingface_hub stands on; its names differ between versions.
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        yield
    except GatedRepoError:
        raise CheckpointError(
            f"{model} is gated: accept its terms on the hub and set HF_TOKEN to a token of yours."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder {model}, and the hub has no such model (or HF_TOKEN may not see it)."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{model} has no revision {revision}. Give a branch, tag or commit that it has."
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"There is no folder {model}, and the hub cannot be reached to look for it. Download it on a connected "
            "machine (hf download) and give the folder, or unset HF_HUB_OFFLINE."
        ) from None
    except NotASafetensorsRepoError:
        raise CheckpointError(
            f"{model} has no safetensors on the hub. Look for a conversion of it, or convert it once with "
            "transformers' save_pretrained."
        ) from None
    except (OSError, ValueError, SafetensorsParsingError, http_error) as error:
        raise CheckpointError(f"cannot download {model} from the hub: {' '.join(str(error).split())}") from None
