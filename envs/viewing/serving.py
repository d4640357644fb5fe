"""The page over this machine's loopback, which follows a run that is being written."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.store import Corrupt
from polyturn.envs.viewing.book import Book, Pieces, bind, compressed
from polyturn.envs.viewing.page import html, policy_of
from polyturn.envs.viewing.sources import find

_PAUSE = 5.0  # readings take at most one part in six of the time, however large a run has grown


class ViewServer:
    """Serves the page to this machine's own browser until `close`.

    It answers only under a path with a random part, which other users of the machine cannot guess, and only to requests
    that name this machine, so that no page on the internet can have a browser read the run.

    Args:
        paths: As `polyturn.envs.viewing.page.write_page`.
        title: Heading.
        port: 0 takes a free one.
        annotate: What compares the members of a group.
        pieces: The text of tokens.
        corrupt: What to do at a damaged record.

    Raises:
        NothingToShow: A path holds nothing to look at.
        OSError: The port is taken.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        title: str,
        port: int = 0,
        annotate: Annotator = by_return,
        pieces: Pieces | None = None,
        corrupt: Corrupt = "raise",
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._bind: Callable[[], Book] = lambda: bind(
            find(self._paths), title=title, annotate=annotate, pieces=pieces, corrupt=corrupt
        )
        self._lock = threading.Lock()
        self._version, self._book, self._due = self._fingerprint(), self._bind(), 0.0
        self._secret = secrets.token_urlsafe(16)
        handler = type("_BoundHandler", (_Handler,), {"view": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self._server.server_port}/{self._secret}/"

    def serve(self) -> None:
        """Answers until `close` is called from another thread, or Ctrl-C."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stops `serve` and frees the port."""
        self._server.shutdown()
        self.release()

    def release(self) -> None:
        """Frees the port and what was read, after `serve` has ended."""
        self._server.server_close()
        self._book.chunks.close()

    def answer(self, host: str, path: str) -> tuple[int, str, bytes, dict[str, str]]:
        """Status, media type, body and headers of a request."""
        port = self._server.server_port
        place = f"/{self._secret}/"
        named = host in (f"127.0.0.1:{port}", f"localhost:{port}")
        if not named or not secrets.compare_digest(path[: len(place)].encode(), place.encode()):
            return 404, "text/plain", b"not found", {}
        rest = path[len(place) :]
        with self._lock:
            if rest == "":
                page = "".join(html(self._book, "server"))
                # The header repeats what the page says, for browsers read it first.
                return 200, "text/html; charset=utf-8", page.encode(), {"Content-Security-Policy": policy_of("server")}
            if rest == "version":
                self._refresh()
                return 200, "text/plain", self._version.encode(), {}
            if rest == "index":
                return 200, "application/gzip", compressed(self._book.index), {"X-Version": self._version}
            kind, _, number = rest.partition("/")
            if kind == "chunk" and number.isdecimal() and int(number) < len(self._book.chunks):
                return 200, "application/gzip", self._book.chunks[int(number)], {}
        return 404, "text/plain", b"not found", {}

    def _refresh(self) -> None:
        """Reads everything again if something was written, and if the last reading is long enough ago."""
        now = self._fingerprint()
        if now == self._version or time.monotonic() < self._due:
            return
        begun = time.monotonic()
        old, self._book = self._book, self._bind()
        old.chunks.close()
        self._version = now
        self._due = time.monotonic() + _PAUSE * (time.monotonic() - begun)

    def _fingerprint(self) -> str:
        found = find(self._paths)
        files = [
            *found.stores,
            *(folder / "metrics.jsonl" for run in found.runs for folder in run.metrics),
            *(result.path for result in found.results),
        ]
        facts = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
        facts += [(str(run.path), len(run.iterations), 0) for run in found.runs]
        return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    view: ViewServer
    server_version = "polyturn"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers one request."""
        status, media, body, headers = self.view.answer(self.headers.get("Host", ""), urlsplit(self.path).path)
        self.send_response(status)
        fixed = {
            "Content-Type": media,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Frame-Options": "DENY",
        }
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that asks every two seconds would fill the terminal."""
