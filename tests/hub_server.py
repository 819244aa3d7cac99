"""A hub on this machine: it answers as the Hugging Face hub does, and on request as a bad day of it.

One address gives lists and small files, and sends whoever asks for tensors to another, as to a CDN: by a link that
expires, with an ETag of its own and ranges of bytes. Faults are taken off a list, one for each answer with tensors.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 16 << 10


@dataclass
class Hub:
    """One model, `org/toy`, and what was asked for."""

    folder: Path
    ranges: bool = True
    token: str | None = None
    """Without it tensors are refused."""
    faults: list[str] = field(default_factory=list)
    """429, 503, reset, short, slow or silent: what meets the next requests of bytes, one each."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """File, first and last byte of each range that was asked for."""
    looked_up: list[str] = field(default_factory=list)
    tokens_elsewhere: list[str] = field(default_factory=list)
    """What a CDN got to know that is none of its business."""
    links: int = 0
    """Goes up when links expire."""
    most_in_flight: int = 0
    _in_flight: int = 0
    _etags: dict[tuple[Path, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    url: str = ""
    cdn: str = ""
    connections: int = 0
    """How often somebody called the CDN; a call may ask for many ranges."""

    def expire_links(self) -> None:
        self.links += 1

    def etag(self, name: str) -> str:
        path = self.folder / name
        at = path, path.stat().st_mtime_ns
        if at not in self._etags:
            with path.open("rb") as file:
                self._etags[at] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._etags[at]

    @contextmanager
    def answering(self, length: int) -> Iterator[None]:
        with self._lock:
            self._in_flight += length
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= length


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _Lists(_Quiet):
    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/toy/tree/"):
            self.answer(200, json.dumps([self._entry(path) for path in self._paths()]).encode())
        elif self.path.startswith("/api/models/org/toy"):
            siblings = [{"rfilename": path.name} for path in self._paths()]
            self.answer(200, json.dumps({"id": "org/toy", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self._file()

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.hub.folder.iterdir() if path.is_file())

    def _entry(self, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": self.hub.etag(path.name)[:40]}

    def _file(self) -> None:
        found = re.fullmatch(rf"/org/toy/resolve/{COMMIT}/([\w.-]+)", self.path)
        path = self.hub.folder / found[1] if found else None
        if path is None or not path.exists():
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        about = {"X_Repo_Commit": COMMIT, "ETag": f'"{self.hub.etag(path.name)}"'}
        if path.suffix != ".safetensors":
            self.answer(200, path.read_bytes(), **about)
            return
        self.hub.looked_up.append(path.name)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, X_Error_Code="GatedRepo")
            return
        about |= {"X_Linked_ETag": about["ETag"], "X_Linked_Size": str(path.stat().st_size)}
        self.answer(302, Location=f"{self.hub.cdn}/{path.name}?link={self.hub.links}", **about)


class _Bytes(_Quiet):
    def setup(self) -> None:
        self.hub.connections += 1
        super().setup()

    def do_GET(self) -> None:
        name, _, link = self.path.lstrip("/").partition("?link=")
        if given := self.headers.get("Authorization"):
            self.hub.tokens_elsewhere.append(given)
        if int(link) < self.hub.links:
            self.answer(403)
            return
        path, etag = self.hub.folder / name, f'"cdn-{self.hub.etag(name)[:8]}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.hub.ranges:
            self.answer(200, path.read_bytes(), ETag=etag)
            return
        first, last = int(asked[1]), int(asked[2])
        self.hub.asked.append((name, first, last))
        fault = self.hub.faults.pop(0) if self.hub.faults else ""
        if fault in ("429", "503"):
            self.answer(int(fault), **({"Retry_After": "3"} if fault == "429" else {}))
            return
        of = f"bytes {first}-{last}/{path.stat().st_size}"
        with path.open("rb") as file, self.hub.answering(last + 1 - first):
            file.seek(first)
            self._send(file, last + 1 - first, fault, ETag=etag, Content_Range=of)

    def _send(self, file: BinaryIO, length: int, fault: str, **headers: str) -> None:
        promised = length // 2 if fault == "short" else length
        self.send_response(206)
        for name, value in {"Content-Length": str(promised), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        given = length // 2 if fault in ("short", "reset", "silent") else length
        for at in range(0, given, PIECE):
            time.sleep(0.2 * (fault == "slow"))
            self.wfile.write(file.read(min(PIECE, given - at)))
        time.sleep(2 * (fault == "silent"))
        self.close_connection = given < promised


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Who is killed says no goodbye."""


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub that serves a checkpoint's folder as `org/toy`, while the block runs."""
    hub = Hub(folder)
    lists, content = (
        _Server(("127.0.0.1", 0), type(kind.__name__, (kind,), {"hub": hub})) for kind in (_Lists, _Bytes)
    )
    hub.url, hub.cdn = (f"http://127.0.0.1:{each.server_port}" for each in (lists, content))
    for each in (lists, content):
        threading.Thread(target=each.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        for each in (lists, content):
            each.shutdown()
            each.server_close()


def reach(url: str, cache: Path, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """From here on huggingface_hub asks the hub of this address, and keeps what it fetches in `cache`."""
    constants = huggingface_hub.constants
    put(constants, "ENDPOINT", url)
    put(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    put(constants, "HF_HUB_OFFLINE", False)
    put(constants, "HF_HUB_CACHE", str(cache))
    put(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)


if __name__ == "__main__":
    with serving(Path(sys.argv[1])) as own:
        print(own.url, flush=True)
        sys.stdin.read()
