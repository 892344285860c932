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
        "redis+cluster://",
        "redis+cluster://:hunter2@",
        "redis+cluster://:hunter2@a:1,",
        "redis+cluster://:hunter2@a:1,:2",
        "redis+cluster://:hunter2@a:1,b:0",
        "redis+cluster://:hunter2@a:1,b:x",
        "redis+cluster://:hunter2@a:1/1",
        "redis+cluster://h:1?db=0",
        "redis+cluster://h:1?ssl_ca_certs=/ca.pem",
        "rediss+cluster://h:1?ssl_cert_reqs=none",
        "redis+cluster:///run/s.sock",
        "unix+cluster:///run/s.sock",
        "redis+sentinel://:hunter2@h:1",
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
    ("url", "seeds", "server"),
    [
        ("redis+cluster://a:7000,b:7001", [("a", 7000), ("b", 7001)], "redis://c:9/0"),
        ("redis+cluster://a", [("a", 6379)], "redis://c:9/0"),
        ("redis+cluster://u:p%40w@[::1]:7000,b/0", [("::1", 7000), ("b", 6379)], "redis://u:p%40w@c:9/0"),
        (
            "rediss+cluster://:secret@a:7000?ssl_ca_certs=/ca.pem",
            [("a", 7000)],
            "rediss://:secret@c:9/0?ssl_ca_certs=/ca.pem",
        ),
    ],
)
def test_a_cluster_s_address(url: str, seeds: list[tuple[str, int]], server: str) -> None:
    """What one of its servers is reached by has the same credentials and the same options."""
    store_url.check(url)
    assert store_url.is_cluster(url)
    assert store_url.seeds(url) == seeds
    assert store_url.server_url(url, "c", 9) == server
    store_url.check(store_url.server_url(url, "::2", 9))


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://host", "unix:///run/s.sock", "", "cluster", "x+cluster"]
)
def test_what_is_no_cluster(url: str) -> None:
    assert not store_url.is_cluster(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host/0?db=3&password=hunter2", "redis://host/0?db=3&password=***"),
        ("redis+cluster://u:hunter2@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
        ("redis://:hun@ter2@host/0", "redis://:***@host/0"),
        ("redis://:hun/ter2@host/0", "redis://:***@host/0"),
        ("redis://:hunter2@[::1:1/0", "redis://:***@[::1:1/0"),
        ("unix:///run/s.sock", "unix:///run/s.sock"),
        ("unix:///run/s.sock?password=hunter2", "unix:///run/s.sock?password=***"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert store_url.redacted(url) == shown
