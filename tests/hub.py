"""A stand-in of a hub's HTTP interface on loopback: one model at one commit, served from a folder.

It answers what huggingface_hub asks for: the listing of a commit, and files, whole or from a byte on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

REPO, COMMIT = "someone/tiny-model", "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub, and what it was asked: `break_once` names a file whose first answer stops half-way."""

    folder: Path
    endpoint: str = ""
    break_once: str = ""
    asked: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        """Return the files that were sent, sorted."""
        return sorted(line.removeprefix("GET ") for line in self.asked if line.startswith("GET /" + REPO))


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve a folder as REPO at COMMIT."""
    hub = Hub(folder)
    handler = type("Bound", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keep quiet."""

    def _answer(self, send: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.path.split("?")[0] == f"/api/models/{REPO}/revision/{COMMIT}":
            return self._listing()
        start = f"/{REPO}/resolve/{COMMIT}/"
        file = self.hub.folder / self.path.removeprefix(start)
        if not self.path.startswith(start):
            return self._error("RepoNotFound" if REPO not in self.path else "RevisionNotFound")
        if not file.is_file():
            return self._error("EntryNotFound")
        return self._file(file, send)

    def _listing(self) -> None:
        names = sorted(path.relative_to(self.hub.folder).as_posix()
                       for path in self.hub.folder.rglob("*") if path.is_file())  # fmt: skip
        value = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        body = json.dumps(value).encode()
        self._head(HTTPStatus.OK, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _file(self, file: Path, send: bool) -> None:
        body = file.read_bytes()
        headers = {"ETag": f'"{sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].split("-")[0])
        if first:
            self.hub.resumed.append(file.name)
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self._head(HTTPStatus.PARTIAL_CONTENT if first else HTTPStatus.OK, len(body) - first, headers)
        if not send:
            return
        if self.hub.break_once == file.name:
            self.hub.break_once = ""
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body[first:])

    def _error(self, code: str) -> None:
        self._head(HTTPStatus.NOT_FOUND, 0, {"X-Error-Code": code, "X-Error-Message": code})

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
