"""A web server on this machine that misbehaves as told."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Faulty:
    """Serves ``files`` (path to bytes, or (content type, bytes)). The faults are used up one request at a time."""

    files: dict[str, bytes | tuple[str, bytes]] = field(default_factory=dict)
    #: ``503``-like codes, ``cut N`` (N bytes, then the connection breaks), ``stall N`` (N bytes, then silence).
    faults: list[str] = field(default_factory=list)
    ranges: bool = True
    #: The ``Authorization`` that it asks for; empty: none.
    login: str = ""
    url: str = ""
    #: The method, path and Range of each request.
    seen: list[tuple[str, str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(faulty: Faulty) -> Iterator[Faulty]:
    """Serve until the ``with`` ends; ``url`` is set."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            faulty.seen.append((self.path, asked))
            faulty.logins.append(self.headers.get("Authorization", ""))
            fault = faulty.faults.pop(0) if faulty.faults else ""
            if fault.isdigit():
                self.send_error(int(fault))
                return
            if faulty.login and self.headers.get("Authorization") != faulty.login:
                self.send_error(401)
                return
            entry = faulty.files.get(self.path)
            if entry is None:
                self.send_error(404)
                return
            kind, body = entry if isinstance(entry, tuple) else ("application/octet-stream", entry)
            start = int(asked[6:].rstrip("-")) if asked and faulty.ranges else 0
            if start >= len(body) and start:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            word, _space, count = fault.partition(" ")
            self.wfile.write(body[start : start + int(count)] if fault else body[start:])
            self.wfile.flush()
            if word == "stall":
                time.sleep(1)

        def log_message(self, *_args: object) -> None:
            """Say nothing: pytest shows what matters."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    faulty.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
