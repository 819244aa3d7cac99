"""What every test may ask for, trained models and a toy checkpoint; and what keeps parallel workers apart."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests are timed by pytest-timeout; a deadline per example only measures how busy the machine is. Every run tries the
# same examples, so that a red test is a changed program; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")

ROOT = Path(__file__).parents[1]


def _keep_workers_apart() -> None:
    """Each worker of pytest-xdist has caches of its own, kept from run to run under .pytest_cache.

    numba numbers the files of its cache by what the index held when it was read, so that two processes which compile
    one function for different types at once may load each other's code. Whatever tests start inherits all of this.
    """
    caches = ROOT / ".pytest_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    for variable, folder in (
        ("NUMBA_CACHE_DIR", caches / "numba"),
        ("HF_HOME", caches / "huggingface"),
        ("MPLCONFIGDIR", ROOT / ".pytest_cache" / "matplotlib"),  # locks its own files; the list of fonts takes seconds
    ):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder)


# Before anything imports numba, huggingface_hub or matplotlib, which read these once.
_keep_workers_apart()

from tests.toys import make_toy  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"
TRAINED = {
    "mixtral": "moe-tiny-mixtral",
    "qwen2_moe": "moe-tiny-qwen2moe",
    "deepseek_v2": "moe-tiny-deepseekv2",
}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models and data beside the repository; tests that need it are skipped without it."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the trained models are not here: this test reads them from ../shared/models")
    return SHARED


@pytest.fixture(params=TRAINED)
def trained(request: pytest.FixtureRequest, shared: Path) -> Path:
    """The folder of one small trained checkpoint, of each of the paper's three architectures in turn."""
    return shared / "models" / TRAINED[request.param]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A tiny Qwen2-MoE checkpoint: three layers of six experts, top-2, bfloat16, one file."""
    return make_toy(tmp_path / "toy")
