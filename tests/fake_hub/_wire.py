"""HTTP/1.1 for the stand-in Hub: reads a request, lets the ordered fault act, writes the answer, keeps the log."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from ._faults import Fault, corrupted
from ._store import HubError

if TYPE_CHECKING:
    from . import FakeHub


@dataclass
class Request:
    """One line of the log. `status` is None where the connection was cut before a status was sent."""

    method: str
    path: str
    query: str = ""
    status: int | None = None
    fault: str | None = None

    @property
    def line(self) -> str:
        """`METHOD /path`, the text that patterns are matched against."""
        return f"{self.method} {self.path}"


@dataclass
class Call:
    """A request as the routes see it. Header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; anything else is the client's mistake."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"Invalid JSON body: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body must be a JSON object")
        return value

    def flag(self, name: str) -> bool:
        """A boolean of the query string."""
        return self.query.get(name, [""])[0].lower() in ("1", "true", "yes")


@dataclass
class Answer:
    """A response: bytes, or a value to send as JSON."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """An answer whose body is this value."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubServer(ThreadingHTTPServer):
    """The listening socket, with its open connections: closing it ends them, as a server that goes down does."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), HubHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note the connection, then serve it in its own thread."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is normal here; anything else is a bug of the stand-in, shown to the test."""
        trace = traceback.format_exc()
        if "ConnectionError" not in trace and "BrokenPipeError" not in trace and "ConnectionResetError" not in trace:
            self.hub.errors.append(trace)

    def close_all(self) -> None:
        """Stop accepting, wake every stall, and hang up on every client."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            hang_up(connection)


def hang_up(connection: socket.socket) -> None:
    """End a connection at once, whatever was still to come."""
    with contextlib.suppress(OSError):  # the other side may have been faster
        connection.shutdown(socket.SHUT_RDWR)


class HubHandler(BaseHTTPRequestHandler):
    """One connection. Every method takes the same way through `serve`."""

    protocol_version = "HTTP/1.1"
    server_version = "FakeHub"
    # Headers and body are separate writes; with Nagle's algorithm each answer would wait for a delayed ACK (40 ms).
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Silence: the log is `FakeHub.requests`."""

    def serve(self) -> None:
        """Read, fault, route, answer."""
        hub = cast(HubServer, self.server).hub
        parts = urlsplit(self.path)
        entry = Request(self.command, parts.path, parts.query)
        hub.requests.append(entry)
        fault = hub.faults.take(self.command, parts.path)
        entry.fault = fault.kind if fault else None
        if fault and fault.kind == "cut" and fault.when == "request":
            self._cut_while_reading()
            return
        body = self._read_body()
        if fault and fault.kind == "stall" and fault.when == "request":
            cast(HubServer, self.server).closing.wait(fault.seconds)
        if fault and fault.kind == "fail":
            error = HubError(fault.status, fault.message, headers=fault.headers)
            self._send(entry, self._error(error), fault)
            return
        if fault and fault.kind == "corrupt":
            body = corrupted(body)
        query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self._route(hub, Call(self.command, parts.path, query, headers, body))
        if fault and fault.kind == "cut" and fault.when == "reply":
            self._cut()
            return
        self._send(entry, answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - the names that http.server looks for

    def _route(self, hub: FakeHub, call: Call) -> Answer:
        try:
            return hub.handle(call)
        except HubError as error:
            return self._error(error)
        except Exception:  # noqa: BLE001 - whatever it is, the test must see it
            # 418 and not 500: the client would retry a 500 for half a minute and hide the bug of the stand-in.
            hub.errors.append(traceback.format_exc())
            return self._error(HubError(418, "the stand-in Hub has a bug, see FakeHub.errors"))

    @staticmethod
    def _error(error: HubError) -> Answer:
        return Answer.of_json({"error": error.message}, error.status, error.headers)

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces: list[bytes] = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _cut_while_reading(self) -> None:
        """Take in a part of the body, then hang up. Where there is no body, hang up instead of answering."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.rfile.readline()
        else:
            self.rfile.read(min(4096, int(self.headers.get("Content-Length") or 0)))
        self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        hang_up(self.connection)

    def _send(self, entry: Request, answer: Answer, fault: Fault | None) -> None:
        body = answer.body
        if fault and fault.kind == "corrupt" and entry.method == "GET":
            body = corrupted(body)
        entry.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            # HTTP headers are Latin-1 and one line; error texts may hold a file name in any script.
            self.send_header(name, value.replace("\n", " ").encode("latin-1", "replace").decode("latin-1"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if entry.method == "HEAD":
            return
        half = len(body) // 2
        if fault and fault.when == "body" and fault.kind in ("cut", "stall"):
            self.wfile.write(body[:half])
            if fault.kind == "cut":
                self._cut()
                return
            cast(HubServer, self.server).closing.wait(fault.seconds)
            body = body[half:]
        self.wfile.write(body)
