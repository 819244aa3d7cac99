"""Checkpoints that live on the Hugging Face hub, by way of huggingface_hub.

HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured because huggingface_hub honours them; there is no cache of our own.
Not run against a live hub: the machine this was built on has none. The tests replace the hub's one call.
"""

import re
from pathlib import Path
from typing import cast

from moeits.errors import CheckpointError

# Data only: modelling code of a repository is never fetched, so it can never run.
DATA_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
OTHER_FORMATS = ("original/*", "onnx/*", "metal/*", "consolidated*")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def download(model: str, revision: str | None = None) -> tuple[Path, str]:
    """Folder of a hub model's files, and its name with the resolved commit (`org/name@commit`).

    Raises CheckpointError if `model` is no hub id, or if the hub does not give it.
    """
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"There is no folder {model!r}, and it is no hub id (org/name) either. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The base class of whichever HTTP library this huggingface_hub stands on; its names differ between versions.
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(DATA_FILES), ignore_patterns=list(OTHER_FORMATS)
            )
        )
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
    except (OSError, ValueError, http_error) as error:
        raise CheckpointError(f"{model} cannot be had from the hub: {' '.join(str(error).split())}") from None
    return folder, f"{model}@{folder.name}"
