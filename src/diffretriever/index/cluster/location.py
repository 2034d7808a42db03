"""ClusterLocation: the address of an index on a Qdrant server, such as `qdrant://host:6333/collection`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from diffretriever.errors import InputError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

#: Environment variables: the key a server asks for, and the leave to send it unencrypted to another machine.
KEY_VARIABLE, PLAIN_KEY_VARIABLE = "QDRANT_API_KEY", "QDRANT_ALLOW_PLAIN_KEY"
PORT = 6333
#: Seconds that the server may take for one request.
TIMEOUT = 60

_SCHEMES = {"qdrant": False, "qdrants": True}
_FORM = "qdrant://host:6333/collection, or qdrants://... for a server that speaks TLS"
#: What the server refuses in the name of a collection.
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00\x1f]')


@dataclass(frozen=True)
class ClusterLocation:
    """Where an index on a server is. It never holds a key, so it may be shown.

    Attributes:
        host: name or address of the server, or of any node of a cluster.
        port: its port for HTTP.
        prefix: path under which the server answers, "" for the root; not "" behind some proxies.
        collection: name of the collection.
        tls: whether the connection is encrypted.
    """

    host: str
    port: int
    prefix: str
    collection: str
    tls: bool

    @staticmethod
    def parse(text: str) -> ClusterLocation:
        """Read `qdrant://host:port/collection` or `qdrants://...`; the port may be left out.

        Raises:
            InputError: the text is not of this form.
        """
        if any(mark in text for mark in "@?#"):
            # The text is not shown: it may hold the key.
            raise InputError(f"the address of a server must hold no user, key or option; set {KEY_VARIABLE} instead")
        try:
            parts = urlsplit(text)
            port = PORT if parts.port is None else parts.port
        except ValueError as error:
            raise InputError(f"{text!r} is no address ({error}); write {_FORM}") from None
        path = parts.path.strip("/")
        prefix, _, name = path.rpartition("/")
        collection = unquote(name)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise InputError(f"{text!r} is no address of an index on a server; write {_FORM}")
        if not collection or _BAD_NAME.search(collection) or collection in (".", ".."):
            raise InputError(f"{text!r} names no collection that a server can have; write {_FORM}")
        return ClusterLocation(parts.hostname, port, prefix, collection, _SCHEMES[parts.scheme])

    def __str__(self) -> str:
        prefix = f"/{self.prefix}" if self.prefix else ""
        return f"qdrant{'s' * self.tls}://{self._authority}{prefix}/{quote(self.collection, safe='')}"

    @property
    def server(self) -> str:
        """The address of the server itself, as its clients want it."""
        prefix = f"/{self.prefix}" if self.prefix else ""
        return f"http{'s' * self.tls}://{self._authority}{prefix}"

    def connect(self, environment: Mapping[str, str] = os.environ) -> QdrantClient:
        """Return a client of the server; nothing is sent yet.

        The key comes from the environment, and so do certificates (`SSL_CERT_FILE`) and proxies, which the HTTP
        library reads by itself.

        Raises:
            InputError: there is a key, and it would go to another machine unencrypted.
        """
        from qdrant_client import QdrantClient

        key = environment.get(KEY_VARIABLE) or None
        if key and not self.tls and not self._is_this_machine and environment.get(PLAIN_KEY_VARIABLE) != "1":
            raise InputError(
                f"{KEY_VARIABLE} is set and {self} is not encrypted, so others could read the key; use qdrants://, or "
                f"unset the key, or set {PLAIN_KEY_VARIABLE}=1 on a network that you trust"
            )
        # As a header and not as `api_key`, about which the client would warn on any unencrypted connection.
        headers = {"api-key": key} if key else None
        return QdrantClient(url=self.server, headers=headers, timeout=TIMEOUT, check_compatibility=False)

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def _is_this_machine(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def is_cluster(path: str | Path | None) -> bool:
    """Return whether a path is the address of an index on a server rather than a folder.

    Raises:
        InputError: an address was made a `Path`, which loses a slash of it.
    """
    if isinstance(path, Path) and path.parts and path.parts[0] in ("qdrant:", "qdrants:"):
        raise InputError(
            f"{path} looks like the address of a server where a folder is wanted; in Python, give an address as a "
            f"string ({_FORM}); on the command line, make the index in a folder and use diffretriever push"
        )
    return isinstance(path, str) and path.partition("://")[0] in _SCHEMES and "://" in path
