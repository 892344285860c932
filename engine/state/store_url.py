"""The address of a store: which ones are taken, and how one is written without its secrets.

The driver reads options of its own from a URL: timeouts, retries, even what runs on a new connection. None of that is an
operator's to change, since what an acknowledgement means rests on it; so an address is checked before the driver sees it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from engine.errors import ConfigError

_OPTIONS: Final = {
    "unix": frozenset({"db"}),
    "redis": frozenset({"db"}),
    "rediss": frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}),
    "redis+cluster": frozenset(),
    "rediss+cluster": frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}),
}
"""Schemes, and what may follow the question mark: which database, and the files of a TLS connection (redis-py's names)."""
_CLUSTER: Final = "+cluster"
"""Behind the scheme of a cluster's address, as the field's libraries write it (limits, Celery); a cluster has one database."""
_PORT_DEFAULT: Final = 6379
_EXPECTED: Final = (
    "use unix:///path/to/socket, redis://host:port/0 or rediss://host:port/0, or for a cluster "
    "redis+cluster://host:port,host:port (rediss+cluster), with user:password@ before the host where the store asks for them"
)
_NUMBER: Final = re.compile(r"[0-9]{1,5}")


def redacted(url: str) -> str:
    """Write a store's URL without its password, also one that is misshapen. Never raises."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    # A password that is not quoted may hold anything, so all up to the last @ is taken for one.
    secret, at, place = rest.rpartition("@")
    user, colon, _ = secret.partition(":")
    place, _, _ = place.partition("#")
    place, mark, query = place.partition("?")
    shown = [
        part
        if re.fullmatch(r"db=[0-9]*", part)
        else f"{part.partition('=')[0]}=***"
        if "=" in part
        else "***"
        for part in query.split("&")
    ]
    return f"{scheme}{separator}{f'{user}:***@' if colon else at and '***@'}{place}{mark}{'&'.join(shown) if query else ''}"


def is_cluster(url: str) -> bool:
    """Whether this is the address of a cluster. Never raises."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme in _OPTIONS and scheme.endswith(_CLUSTER)


def seeds(url: str) -> list[tuple[str, int]]:
    """Host and port of each server that a cluster's address (which `check` has taken) names."""
    places = urlsplit(url).netloc.rpartition("@")[2].split(",")
    found = [urlsplit(f"//{place}") for place in places]
    return [(parts.hostname or "", _PORT_DEFAULT if parts.port is None else parts.port) for parts in found]


def server_url(url: str, host: str, port: int) -> str:
    """The address of one server of the cluster at `url`, reached with the same credentials and options."""
    parts = urlsplit(url)
    secret, at, _ = parts.netloc.rpartition("@")
    place = f"[{host}]" if ":" in host else host
    return parts._replace(
        scheme=parts.scheme.removesuffix(_CLUSTER), netloc=f"{secret}{at}{place}:{port}", path="/0"
    ).geturl()


def check(url: str) -> None:
    """Raise ConfigError, naming what is wrong and never a secret, unless `url` is the address of a store."""
    if why := _fault(url):
        raise ConfigError(
            f"store URL {redacted(url)!r} is not understood: {why}; {_EXPECTED}", field="store_url"
        )


def _fault(url: str) -> str:
    """What is wrong with a URL; '' when nothing is."""
    if not url.isprintable() or " " in url:
        return "it holds blanks or characters that are not printable"
    try:
        parts = urlsplit(url)
        places = [(parts.hostname, parts.port)] if not is_cluster(url) else seeds(url)
    except ValueError:  # its text may quote the password
        return "host and port can't be told apart (write %xx for special characters of a password)"
    options = _OPTIONS.get(parts.scheme)
    if options is None:
        return f"it begins with none of {', '.join(f'{scheme}://' for scheme in _OPTIONS)}"
    if parts.fragment or "#" in url:
        return "a # has no meaning in it (write %23 in a password)"
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.startswith("/") or parts.path == "/":
            return "the path of a socket begins with a slash"
    elif not all(host and port != 0 for host, port in places):
        return "there is no host, or no port"
    elif is_cluster(url) and parts.path not in ("", "/", "/0"):
        return "a cluster has database 0 only"
    elif not (parts.path in ("", "/") or _NUMBER.fullmatch(parts.path[1:])):
        return "the path is not the number of a database"
    given = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in given:
        if name not in options:
            return (
                f"of options it may have only {', '.join(sorted(options))}"
                if options
                else "it has no options"
            )
        if not value or (name == "db" and not _NUMBER.fullmatch(value)):
            return f"the option {name!r} has no meaning with this value"
    if parts.query and not given:
        return "its options are not written name=value"
    return ""
