"""A Qdrant server on the loopback: the HTTP that its clients speak, over the client's own local engine.

It can be told to misbehave, as servers and networks do. It is no substitute for a real server, which the tests use
instead when QDRANT_URL names one; it makes what our side sends and understands pass through a real socket.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

UPDATES = TypeAdapter(list[models.UpdateOperation])


class Server:
    """The server and its faults.

    Attributes:
        port: where it listens.
        failures: answers for the next requests that write or read points: an HTTP status, "close" (the connection is
            closed without an answer), or "lose" (the request is carried out and its answer lost).
        requests: (method, path) of everything that arrived.
        keys: the `api-key` headers that arrived.
        api_key: the key that requests must bring, if any.
        keeps_metadata: False for the manners of a server before 1.16.
        delay: seconds that each request takes.
        most: the greatest number of requests that were under way at a time.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.engine = QdrantClient(":memory:")
        self.failures: list[int | str] = []
        self.requests: list[tuple[str, str]] = []
        self.keys: list[str | None] = []
        self.bodies: list[bytes] = []
        self.api_key: str | None = None
        self.keeps_metadata = True
        self.delay = 0.0
        self._together = 0
        self.most = self._active = 0
        self._lock = threading.Lock()
        self._met = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        if context is not None:
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self.engine.close()

    def url(self, collection: str, scheme: str = "qdrant") -> str:
        return f"{scheme}://127.0.0.1:{self.port}/{collection}"

    def begin_together(self, count: int) -> None:
        """Let the next writes of points wait until so many are under way; not for ever, if there never are."""
        self._together = count
        self._met.clear()

    def _begin(self, http: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._active += 1
            self.most = max(self.most, self._active)
            http.active = True
            if self._active >= self._together:
                self._met.set()
        if http.command == "PUT" and urlsplit(http.path).path.endswith("/points") and not self._met.wait(50):
            self._met.set()
        time.sleep(self.delay)

    def _end(self, http: BaseHTTPRequestHandler) -> None:
        """A request is over once its answer is known: the client may ask for more before the thread goes on."""
        with self._lock:
            self._active -= http.active
            http.active = False

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client went away
                    self.close_connection = True

            def answer_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server._begin(self)
                try:
                    server._answer(self, body)
                finally:
                    server._end(self)

            def end_headers(self) -> None:
                server._end(self)
                super().end_headers()

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer_any  # noqa: N815

        return Handler

    def _answer(self, http: BaseHTTPRequestHandler, body: bytes) -> None:
        path = urlsplit(http.path).path
        with self._lock:
            self.requests.append((http.command, path))
            self.keys.append(http.headers.get("api-key"))
            self.bodies.append(body)
            fault = self.failures.pop(0) if self.failures and "/points" in path else None
        if self.api_key is not None and http.headers.get("api-key") != self.api_key:
            _send(http, 401, {"status": {"error": "Must provide an API key"}})
        elif isinstance(fault, int):
            _send(http, fault, {"status": {"error": "out of order"}})
        elif fault == "close":
            http.close_connection = True
        else:
            status, value = self._carry_out(http.command, path, body)
            if fault == "lose":
                http.close_connection = True
            else:
                _send(http, status, value)

    def _carry_out(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        try:
            with self._lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the local engine always compares everything
                result = _dispatch(self, method, path, body)
        except ValueError as error:
            status = 404 if "not found" in str(error) else 409 if "already exists" in str(error) else 400
            return status, {"status": {"error": str(error)}}
        if path == "/":
            return 200, result.model_dump()
        return 200, {"result": _plain(result), "status": "ok", "time": 0.0}


def _dispatch(server: Server, method: str, path: str, body: bytes) -> object:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts == [""]:
        return server.engine.info()
    assert parts[0] == "collections", path
    name, rest = parts[1], "/".join(parts[2:])
    answer: dict[tuple[str, str], Callable[[QdrantClient, str, bytes], object]] = {
        ("GET", "exists"): lambda e, n, b: {"exists": e.collection_exists(n)},
        ("GET", ""): lambda e, n, b: e.get_collection(n),
        ("DELETE", ""): lambda e, n, b: e.delete_collection(n),
        ("PUT", ""): lambda e, n, b: _create(server, n, models.CreateCollection.model_validate_json(b)),
        ("PATCH", ""): lambda e, n, b: e.update_collection(n, metadata=json.loads(b)["metadata"]),
        ("PUT", "points"): lambda e, n, b: e.upsert(n, models.PointsList.model_validate_json(b).points),
        ("POST", "points"): _retrieve,
        ("POST", "points/delete"): lambda e, n, b: e.delete(n, models.PointIdsList.model_validate_json(b)),
        ("POST", "points/batch"): lambda e, n, b: e.batch_update_points(
            n, UPDATES.validate_python(json.loads(b)["operations"])
        ),
        ("POST", "points/count"): lambda e, n, b: e.count(n),
        ("POST", "points/scroll"): _scroll,
        ("POST", "points/query/batch"): lambda e, n, b: e.query_batch_points(
            n, models.QueryRequestBatch.model_validate_json(b).searches
        ),
    }
    return answer[method, rest](server.engine, name, body)


def _create(server: Server, name: str, asked: models.CreateCollection) -> bool:
    return server.engine.create_collection(
        name,
        vectors_config=asked.vectors,
        sparse_vectors_config=asked.sparse_vectors,
        metadata=asked.metadata if server.keeps_metadata else None,
    )


def _retrieve(engine: QdrantClient, name: str, body: bytes) -> object:
    asked = models.PointRequest.model_validate_json(body)
    return engine.retrieve(name, asked.ids, with_payload=asked.with_payload, with_vectors=asked.with_vector or False)


def _scroll(engine: QdrantClient, name: str, body: bytes) -> object:
    asked = models.ScrollRequest.model_validate_json(body)
    points, offset = engine.scroll(name, limit=asked.limit, offset=asked.offset, with_payload=asked.with_payload)
    return {"points": points, "next_page_offset": offset}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _send(http: BaseHTTPRequestHandler, status: int, value: dict) -> None:
    body = json.dumps(value).encode()
    http.send_response(status)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(body)))
    http.end_headers()
    http.wfile.write(body)
