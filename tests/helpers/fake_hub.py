"""The part of the Hub's HTTP interface that uploads use, on this machine: repositories are dictionaries of bytes."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """A context manager; `files` by repository, `made` are the repositories, `tokens` what was sent as one."""

    def __init__(self, *, token: str = "hf_test") -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.made: dict[str, dict[str, Any]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def _say(self, value: Any, status: int = 200) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().strip() or b"0", 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_POST(self) -> None:
                body, path = self._body(), self.path.partition("?")[0]
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self._say({"error": "Invalid credentials"}, 401)
                if path == "/api/repos/create":
                    asked = json.loads(body)
                    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                    if name in hub.made:
                        return self._say({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
                    hub.made[name] = asked
                    return self._say({"url": f"{hub.url}/{name}", "name": name})
                if path == "/api/validate-yaml":
                    return self._say({"errors": [], "warnings": []})
                name = "/".join(path.split("/")[3:5])
                if "/preupload/" in path:
                    files = [each["path"] for each in json.loads(body)["files"]]
                    told = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
                    return self._say({"files": told})
                if "/commit/" in path:
                    for line in body.splitlines():
                        part = json.loads(line)
                        if part["key"] == "file":
                            content = base64.b64decode(part["value"]["content"])
                            hub.files.setdefault(name, {})[part["value"]["path"]] = content
                    commit = {"commitUrl": f"{hub.url}/{name}/commit/0", "commitOid": "0" * 40, "pullRequestUrl": None}
                    return self._say(commit)
                return self._say({"error": "unknown"}, 404)

            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self._say({"error": "Invalid credentials"}, 401)
                known = "/".join(self.path.partition("?")[0].split("/")[3:5]) in hub.made
                found = {"sha": "0" * 40, "siblings": [], "id": "x/y"} if known else {"error": "not found"}
                return self._say(found, 200 if known else 404)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
