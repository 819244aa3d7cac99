"""Files of a commit on the Hugging Face hub, read by ranges of their bytes over HTTP; nothing of them is kept on disk.

huggingface_hub finds a file, knows the token and opens connections. What it has no function for is here: a range that
goes on where it broke off, and bytes that are all of one version.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import SEEK_CUR, SEEK_END
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from moeits.checkpoint.sources import Fetched
from moeits.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

T = TypeVar("T")

# How often in a row nothing may come. In between it waits 1 s, 2 s, 4 s, ..., or what the server says, up to the five
# minutes after which the hub counts requests anew.
_MOST_FAILURES, _LONGEST_WAIT = 6, 300.0
_PART = 206
# A link to a CDN that has expired is refused with one of these.
_EXPIRED = (401, 403, 404, 410)
_TIMEOUT, _TOO_MANY, _SERVER_FAULT = 408, 429, 500


@dataclass(frozen=True)
class HubFile:
    """A shard of a commit of a model on the hub. Its ETag there is made of its content."""

    model: str
    commit: str
    name: str
    nbytes: int
    etag: str
    _place: "_Place" = field(compare=False, repr=False)

    @classmethod
    def find(cls, model: str, commit: str, name: str) -> "HubFile":
        """Ask the hub for a file. Raises CheckpointError if it has none of that name, or does not answer."""
        from huggingface_hub import hf_hub_url

        place = _Place(f"{name} of {model}@{commit}", hf_hub_url(model, name, revision=commit))
        nbytes, etag = place.look_up()
        return cls(model, commit, name, nbytes, etag, place)

    def open(self) -> Fetched:
        return _Range(self, self._place)

    def stamp(self) -> tuple[int, int]:
        """Every answer is compared with its size and ETag, so these are not asked for again."""
        return self.nbytes, int.from_bytes(self.etag.encode(), "big")

    def __str__(self) -> str:
        return f"{self.name} of {self.model}@{self.commit}"


class _Place:
    """Where a file is served from: a link to a CDN, which goes out of date."""

    def __init__(self, what: str, url: str) -> None:
        self.what = what
        self._url, self._lock = url, Lock()
        self._found: tuple[int, str] | None = None
        self._link, self._etag_there = url, ""

    def look_up(self) -> tuple[int, str]:
        """Bytes and ETag, as the hub says, which are those that it said before. Raises CheckpointError."""
        found = patiently(self._ask_the_hub, self.what)
        if found.size is None or found.etag is None:
            raise CheckpointError(f"The hub does not say how large {self.what} is. Leave --stream out.")
        with self._lock:
            if self._found not in (None, (found.size, found.etag)):
                raise changed(self.what)
            self._found = found.size, found.etag
            # A CDN has ETags of its own, the first of which stands for all answers of one link.
            self._link, self._etag_there = found.location, ""
        return found.size, found.etag

    def is_new(self, link: str) -> bool:
        """Whether there is another link than this one, which was refused; the hub itself has no other."""
        if self._is_here(link):
            return False
        self.look_up()
        return True

    def request(self, first: int, last: int) -> tuple[str, dict[str, str]]:
        """Where and how to ask for the bytes `first` to `last`. The token goes to the hub alone."""
        from huggingface_hub.utils import build_hf_headers

        with self._lock:
            headers = build_hf_headers() if self._is_here(self._link) else {}
            return self._link, {**headers, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}

    def check(self, link: str, headers: Mapping[str, str]) -> None:
        """An answer is of the file that was found. Raises CheckpointError if it is of another version."""
        assert self._found is not None
        of, etag = headers.get("Content-Range", "").rpartition("/")[2], headers.get("ETag", "").strip('W/"')
        with self._lock:
            if link == self._link:
                self._etag_there = self._etag_there or etag
                if self._etag_there not in ("", etag):
                    raise changed(self.what)
        if of != str(self._found[0]):
            raise changed(self.what)

    def _ask_the_hub(self) -> "HfFileMetadata":
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return get_hf_file_metadata(self._url)
        except EntryNotFoundError:
            raise CheckpointError(
                f"The hub has no {self.what}. Look for a version of the model in safetensors, with all its shards."
            ) from None

    def _is_here(self, link: str) -> bool:
        return urlsplit(link)[:2] == urlsplit(self._url)[:2]


class _Range(Fetched):
    """A file, of which one range at a time is asked for and read as it comes."""

    def __init__(self, file: HubFile, place: _Place) -> None:
        self._file, self._place = file, place
        self._at = self._expected = self._asked = 0
        self._answer = ExitStack()
        self._coming: Iterator[bytes] | None = None
        self._came = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + {SEEK_CUR: self._at, SEEK_END: self._file.nbytes}.get(whence, 0)
        if at != self._at:
            self._hang_up()
            self._at = self._expected = at
        return at

    def expect(self, length: int) -> None:
        self._expected = min(self._at + length, self._file.nbytes)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(self._file.nbytes - self._at, 0)]
        if view and not self._came:
            self._came = memoryview(patiently(lambda: self._next(len(view)), str(self._file)))
        given = min(len(view), len(self._came))
        view[:given] = self._came[:given]
        self._came = self._came[given:]
        self._at += given
        return given

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _next(self, wanted: int) -> bytes:
        """What comes next, at least a byte of it. Raises what the HTTP library raises; then it can be asked again."""
        try:
            if self._coming is None:
                self._coming = self._ask(max(self._expected, self._at + wanted))
            came = next((each for each in self._coming if each), None)
            if came is None:
                raise _Passing("the answer ended early")
            if self._at + len(came) >= self._asked:
                next(self._coming, None)  # the end of it, after which the connection is free for the next range
                self._answer.close()
                self._coming = None
        except BaseException:
            self._hang_up()
            raise
        return came

    def _ask(self, until: int) -> Iterator[bytes]:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import hf_raise_for_status

        link, headers = self._place.request(self._at, until - 1)
        answer = self._answer.enter_context(
            get_session().stream("GET", link, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        )
        if answer.status_code in _EXPIRED and self._place.is_new(link):
            raise _Passing(f"{urlsplit(link).hostname} answered {answer.status_code}")
        hf_raise_for_status(answer)
        if answer.status_code != _PART:
            raise CheckpointError(
                f"{urlsplit(link).netloc} sends the whole of {self._file.name} where a range of its bytes was asked "
                "for. Leave --stream out, and the checkpoint is downloaded."
            )
        self._place.check(link, answer.headers)
        self._asked = until
        return answer.iter_raw()

    def _hang_up(self) -> None:
        self._answer.close()
        self._coming, self._came = None, memoryview(b"")


class _Passing(Exception):
    """A fault that passes, and that the HTTP library does not see."""


def changed(what: str) -> CheckpointError:
    """That not all of a file would be of one version."""
    return CheckpointError(f"{what} changed while it was read. Start again, so that all of it is of one version.")


def patiently(work: Callable[[], T], what: str) -> T:
    """What some work on a file of the hub gives, tried again after faults that pass.

    Raises CheckpointError when it gives nothing many times in a row, and at once what is not going to pass.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of whichever HTTP library this huggingface_hub stands on; its names differ between versions.
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    failures = 0
    while True:
        try:
            return work()
        except (http_error, OSError, _Passing) as error:
            failures += 1
            why, wait = _judged(error, failures)
            if wait is None or failures == _MOST_FAILURES:
                raise CheckpointError(f"{what} cannot be read: {why}. Start again when that has passed.") from None
            time.sleep(wait)


def _judged(error: Exception, failures: int) -> tuple[str, float | None]:
    """What went wrong, and how long to wait before it is tried again; None if that would not help."""
    answer, usual = getattr(error, "response", None), 2.0 ** (failures - 1)
    if answer is None:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__, usual
    passes = answer.status_code in (_TIMEOUT, _TOO_MANY) or answer.status_code >= _SERVER_FAULT
    why = f"{answer.request.url.host} answered {answer.status_code}"
    return why, (_asked_to_wait(answer.headers) or usual) if passes else None


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, by Retry-After or as the hub says when its limit of requests ends (RateLimit: "api";r=0;t=55)."""
    said = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", "")) or re.search(
        r"\bt=(\d+)", headers.get("RateLimit", "")
    )
    return min(float(said[1]), _LONGEST_WAIT) if said else None
