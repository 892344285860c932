"""Addresses of stores: only those that change nothing of what an acknowledgement means, and never a secret in a message."""

from __future__ import annotations

import pytest

from engine.deployment import system_ms
from engine.errors import ConfigError
from engine.state import store_url
from engine.state.connection import Connection, Durability


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host/",
        "redis://host:6379/0",
        "redis://host:6379?db=3",
        "redis://:hunter2@host:6379/0",
        "redis://user:hun%2Fter2@[::1]:6379/15",
        "rediss://host:6379/0?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
        "unix:///run/store.sock",
        "unix:///run/a%20b/store.sock?db=1",
        "unix://user:hunter2@/run/store.sock",
    ],
)
def test_addresses_that_are_taken(url: str) -> None:
    store_url.check(url)
    Connection(url, durability=Durability.MEMORY, now_ms=system_ms).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        ":hunter2@host/0",
        "http://u:hunter2@h/0",
        "redis://:hunter2@h:notaport/0",
        "redis://:hunter2@h:99999/0",
        "redis://:hunter2@h:0/0",
        "redis://:hunter2@:6379/0",
        "redis://:hunter2@h:1/zzz",
        "redis://:hunter2@h:1/0/1",
        "redis://:hunter2@h:1/-1",
        "redis://:hunter2@h:1/0?db=x",
        "redis://:hunter2@h:1/0?evil=1",
        "redis://h:1/0?password=hunter2",
        "redis://h:1/0?username=hunter2",
        "redis://h:1/0?password=hunter2@x",
        "redis://h:1/0?hunter2",
        "redis://h:1/0?db=",
        "redis://h:1/0?socket_timeout=600",
        "redis://h:1/0?retry=",
        "redis://h:1/0?redis_connect_func=",
        "redis://h:1/0?max_connections=1",
        "redis://h:1/0?protocol=3",
        "rediss://h:1/0?ssl_cert_reqs=none",
        "redis://:hun%ter2@[::1:1/0",
        "redis://:hunter2/hunter2@h:1/0",
        "redis://:hunter2?hunter2@h:1/0",
        "redis://:hunter2#hunter2@h:1/0",
        "redis://:hunter2@h:1/0#x",
        "redis://:hunter2@h:1/0\n",
        "redis://:hunter2 @h:1/0",
        "redis://:hunter2\x1b@h:1/0",
        "unix:///nope?password=hunter2",
        "unix://hunter2",
        "unix://relative/hunter2.sock?ssl_ca_certs=/x",
        "unix:///",
        "unix://",
    ],
)
def test_addresses_that_are_refused_without_a_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Connection(url, durability=Durability.MEMORY, now_ms=system_ms)
    assert caught.value.field == "store_url"
    assert "store URL" in caught.value.message
    if "@" in url or "?" in url:
        assert "hunter2" not in caught.value.message.replace("relative/hunter2", "")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host/0?db=3&password=hunter2", "redis://host/0?db=3&password=***"),
        ("redis://:hun@ter2@host/0", "redis://:***@host/0"),
        ("redis://:hun/ter2@host/0", "redis://:***@host/0"),
        ("redis://:hunter2@[::1:1/0", "redis://:***@[::1:1/0"),
        ("unix:///run/s.sock", "unix:///run/s.sock"),
        ("unix:///run/s.sock?password=hunter2", "unix:///run/s.sock?password=***"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert store_url.redacted(url) == shown
