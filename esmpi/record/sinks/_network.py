"""Whether a server can be reached: libraries of sinks try for minutes."""

import socket
from urllib.parse import urlsplit

_PATIENCE_S = 5.0


def without_secrets(url: str) -> str:
    """Return an address without a name, a password or a token that it may have."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def answers(url: str) -> bool:
    """Return whether a server can be reached."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname or "", port), _PATIENCE_S).close()
    except (OSError, ValueError):
        return False
    return True
