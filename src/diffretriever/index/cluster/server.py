"""ClusterServer: requests to a Qdrant server, tried again where that helps, with errors that say what to do."""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from threading import Event
from typing import TypeVar

import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from diffretriever.errors import ServerError
from diffretriever.index.cluster.location import KEY_VARIABLE

#: What the client raises; an answer that is not of a Qdrant server fails its assertions, or to be read at all.
_FAILURES = (ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse, AssertionError, ValueError)

AnswerT = TypeVar("AnswerT")
ErrorT = TypeVar("ErrorT", bound=BaseException)

#: Times that a request is made before giving up: about half a minute in all, which outlasts the restart of a node.
ATTEMPTS = 8
#: Times that the first request of a connection is made: a wrong address should be known at once.
FIRST_ATTEMPTS = 2
#: Seconds before the second attempt, doubled before each further one, and the longest pause.
PAUSE, LONGEST_PAUSE = 0.25, 15.0
#: Answers that another attempt may turn into success. The server says 500 when too few replicas have taken a write.
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Characters of an unknown error that are shown.
_LONGEST_REASON = 200


class ClusterServer:
    """One server, or one node of a cluster, as its client sees it.

    Every request may be made twice: all writes are of the kind that does no harm when repeated. So a request whose
    answer was lost on the way is made again like one that was never received.
    """

    def __init__(self, client: QdrantClient, name: str) -> None:
        """Wrap a client.

        Args:
            client: the client; closed by `close`.
            name: what messages call the server; an address without a key.
        """
        self._client = client
        self._name = name

    def ask(
        self,
        purpose: str,
        request: Callable[[QdrantClient], AnswerT],
        *,
        attempts: int | None = None,
        stopped: Event | None = None,
    ) -> AnswerT:
        """Make a request and return the answer; safe to call from several threads.

        Args:
            purpose: what is wanted, for messages: "search", "write passages".
            request: makes the request.
            attempts: how often; `ATTEMPTS` by default.
            stopped: once this is set, there is no further attempt.

        Raises:
            ServerError: the server cannot be reached, is not one, or refuses.
        """
        most = ATTEMPTS if attempts is None else attempts
        stopped = stopped or Event()
        for attempt in range(1, most + 1):
            try:
                return request(self._client)
            except _FAILURES as error:
                wait = _pause(error, attempt)
                if attempt == most or not _is_transient(error) or stopped.wait(wait):
                    tried = f" after {attempt} attempts" if attempt > 1 else ""
                    raise ServerError(f"{self._name}: cannot {purpose}{tried}: {_reason(error)}") from error
        raise AssertionError  # unreachable: the last attempt returns or raises

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error of `ask`; None when there was no answer."""
    if isinstance(error, ServerError):
        error = error.__cause__
    return error.status_code if isinstance(error, UnexpectedResponse) else None


def _is_transient(error: Exception) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT_STATUS
    if isinstance(error, ResponseHandlingException):
        source = error.source
        unknown = _cause(source, socket.gaierror)
        # The directory of names may be out of order for a moment, too.
        lasting = _cause(source, ssl.SSLCertVerificationError) or (unknown and unknown.errno != socket.EAI_AGAIN)
        return isinstance(source, httpx.TransportError) and not lasting
    return isinstance(error, ResourceExhaustedResponse)


def _pause(error: Exception, attempt: int) -> float:
    if isinstance(error, ResourceExhaustedResponse):
        return min(float(error.retry_after_s), LONGEST_PAUSE)
    # Spread, so that threads which failed together do not come back together.
    return min(PAUSE * 2.0 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311


def _reason(error: Exception) -> str:
    if isinstance(error, UnexpectedResponse):
        return _reason_of_status(error)
    if isinstance(error, ResourceExhaustedResponse):
        return f"it limits the rate of requests ({error}); try later, or raise its limit"
    source = error.source if isinstance(error, ResponseHandlingException) else error
    if _cause(source, socket.gaierror):
        return "no machine of that name is known; check the address"
    if _cause(source, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({source}); name a file of trusted certificates by SSL_CERT_FILE"
    if isinstance(source, httpx.ConnectError | httpx.ConnectTimeout):
        return f"nothing answers there ({source or 'timeout'}); start the server, or check the address and the firewall"
    if isinstance(source, httpx.TimeoutException):
        return "no answer in time; try again, or give the server more resources"
    if isinstance(source, httpx.TransportError):
        return f"the connection broke ({source or type(source).__name__}); a server that speaks TLS needs qdrants://"
    return f"its answer is not that of a Qdrant server that this client knows ({_shorten(source)}); check the address"


def _reason_of_status(error: UnexpectedResponse) -> str:
    status = error.status_code or 0
    said = f"{status} {HTTPStatus(status).phrase}" if status in {s.value for s in HTTPStatus} else str(status)
    with suppress(ValueError, TypeError, KeyError):
        said = f"{status}, {json.loads(error.content)['status']['error']}"
    if status in (401, 403):
        return f"it refuses the key ({said}); set {KEY_VARIABLE} to one that may do this"
    if status == 413:
        return f"the request is too large for it ({said}); raise service.max_request_size_mb of the server"
    if status in _TRANSIENT_STATUS:
        return f"it is not able to ({said}); see to its health and repeat the call"
    return f"it answered {said}"


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def _cause(error: BaseException | None, kind: type[ErrorT]) -> ErrorT | None:
    """Return the error of that kind that led to this one; None if there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
