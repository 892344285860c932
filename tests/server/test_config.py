from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from server import config


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('threads = 2\ngrace_s = 2.5\nlog_level = "debug"\n')
    settings = config.load(
        {"threads": 4, "replicas": None},
        {"PICKGATE_THREADS": "3", "PICKGATE_GRACE_S": "3.5", "PICKGATE_CONFIG": str(file)},
    )
    assert (settings.threads, settings.grace_s, settings.log_level) == (4, 3.5, "debug")
    assert settings.replicas == 0


def test_the_file_in_the_current_folder_is_taken_if_there(tmp_path: Path) -> None:
    assert config.load({}, {}, folder=tmp_path).threads == 16
    (tmp_path / "pickgate.toml").write_text("threads = 5")
    assert config.load({}, {}, folder=tmp_path).threads == 5


def test_a_path_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "pickgate.toml").write_text('data_dir = "state"\npassphrase_file = "/run/secret"')
    settings = config.load({}, {}, folder=tmp_path)
    assert settings.data_dir == tmp_path / "state"
    assert settings.passphrase_file == Path("/run/secret")


def test_the_data_folder_follows_xdg(tmp_path: Path) -> None:
    assert config.load({}, {}, folder=tmp_path).data_dir == tmp_path / "pickgate-data"
    assert config.load({}, {"XDG_STATE_HOME": "/x/state"}, folder=tmp_path).data_dir == Path(
        "/x/state/pickgate"
    )
    assert (
        config.load({}, {"XDG_STATE_HOME": "relative"}, folder=tmp_path).data_dir
        == tmp_path / "pickgate-data"
    )


@pytest.mark.parametrize(
    ("flags", "environ", "text", "parts"),
    [
        ({}, {"PICKGATE_TREADS": "3"}, "", ["PICKGATE_TREADS", "environment", "threads"]),
        ({}, {"PICKGATE_THREADS": "many"}, "", ["threads", "'many'", "environment", "1 .. 64"]),
        ({}, {}, "tread = 3", ["tread", "pickgate.toml", "threads"]),
        ({}, {}, 'threads = "2x"', ["threads", "'2x'", "pickgate.toml", "1 .. 64"]),
        ({}, {}, "threads = true", ["threads", "True", "pickgate.toml"]),
        ({}, {}, "threads = 1.5", ["threads", "1.5", "pickgate.toml"]),
        ({}, {}, "threads = 0", ["threads", "0", "1 .. 64"]),
        ({}, {}, "grace_s = nan", ["grace_s", "nan"]),
        ({}, {}, "grace_s = -1", ["grace_s", "-1", "0 .. 600"]),
        ({}, {}, 'durability = "maybe"', ["durability", "'maybe'", "memory, fsync or replicated"]),
        ({}, {}, "listen = 5", ["listen", "5"]),
        ({}, {}, "listen = []", ["listen"]),
        ({"store_url": "http://x"}, {}, "", ["store_url", "command line", "redis://"]),
        ({"mall_id": -1}, {}, "", ["mall_id", "-1"]),
        ({}, {}, "threads 3", ["pickgate.toml", "not TOML"]),
        ({}, {}, "[server]\nthreads = 3", ["server", "pickgate.toml"]),
    ],
)
def test_a_mistake_names_key_value_origin_and_what_was_expected(
    tmp_path: Path, flags: dict[str, object], environ: dict[str, str], text: str, parts: list[str]
) -> None:
    if text:
        (tmp_path / "pickgate.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(flags, environ, folder=tmp_path)
    for part in parts:
        assert part in caught.value.message


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml can't be read"):
        config.load({}, {}, file=tmp_path / "absent.toml")


def test_what_others_set_in_the_environment_is_left_alone(tmp_path: Path) -> None:
    environ = {
        "PICKGATE_SERVICE_HOST": "10.0.0.1",
        "PICKGATE_PORT": "tcp://10.0.0.1:7425",
        "PICKGATE_PORT_7425_TCP_ADDR": "10.0.0.1",
        "PICKGATE_PURE": "1",
        "PICKGATE_PASSPHRASE": "x",
        "HOME": "/root",
    }
    assert config.load({}, environ, folder=tmp_path).threads == 16


def test_a_password_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({"store_url": "http://user:hunter2@host/0"}, {})
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("environ", "text", "named"),
    [
        ({"PICKGATE_PASSPHRAS": "hunter2"}, "", "PICKGATE_PASSPHRAS"),
        ({"PICKGATE_STORE_URI": "redis://:hunter2@h/0"}, "", "PICKGATE_STORE_URI"),
        ({}, 'passphrase = "hunter2"', "passphrase"),
        ({}, '[store]\npassword = "hunter2"', "store"),
    ],
)
def test_the_value_of_a_mistyped_key_is_never_shown(
    tmp_path: Path, environ: dict[str, str], text: str, named: str
) -> None:
    (tmp_path / "pickgate.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load({}, environ, folder=tmp_path)
    assert named in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("environ", "text", "key"),
    [
        ({"PICKGATE_LOG_LEVEL": "\udcff"}, "", "log_level"),
        ({}, 'data_dir = "a\\u0000b"', "data_dir"),
        ({}, 'passphrase_file = "a\\u0000b"', "passphrase_file"),
        ({}, 'listen = "unix:/a\\u0000b"', "listen"),
        ({}, "threads = " + "9" * 5_000, "config"),
        ({}, "threads = " + "9" * 400, "threads"),
        ({}, "threads = " + "[" * 5_000, "config"),
        ({}, "k" * 5_000 + " = 1", "k" * 5_000),
    ],
)
def test_what_no_operator_means_is_one_clear_line(
    tmp_path: Path, environ: dict[str, str], text: str, key: str
) -> None:
    (tmp_path / "pickgate.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load({}, environ, folder=tmp_path)
    assert caught.value.field == key
    assert len(caught.value.message) < 1_000
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", 0),
        ("127.8.9.1:80", "127.8.9.1:80", 80),
        ("localhost:1", "localhost:1", 1),
        ("[::1]:7425", "[::1]:7425", 7425),
        ("[0:0:0:0:0:0:0:1]:0", "[0:0:0:0:0:0:0:1]:0", 0),
        ("unix:/run/p.sock", "unix:/run/p.sock", None),
        ("unix:///run/p.sock", "unix:/run/p.sock", None),
    ],
)
def test_addresses_on_this_machine_are_taken(text: str, address: str, port: int | None) -> None:
    assert config.parse_listen(text) == config.Listen(address, port)


@pytest.mark.parametrize(
    "text", ["0.0.0.0:7425", "[::]:7425", "192.168.1.5:80", "example.org:80", "*:80", "128.0.0.1:1"]
)
def test_addresses_that_others_reach_are_refused_without_tls(text: str) -> None:
    with pytest.raises(ConfigError, match="TLS"):
        config.load({"listen": [text]}, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7425",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        ":80",
        "unix:",
        "unix:/" + "x" * 120,
        "::1:0",
        "[::1:0",
        "::1]:0",
        "[::1]",
        "[::1]]:0",
        "[]:0",
        "[127.0.0.1]:0",
        "127.0.0.1:\u0663",
        "127.0.0.1:" + "0" * 99,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        config.load({"listen": [text]}, {})


def test_a_list_in_the_environment_is_separated_by_commas() -> None:
    settings = config.load({}, {"PICKGATE_LISTEN": "127.0.0.1:1, unix:/x"})
    assert [listen.address for listen in settings.listen] == ["127.0.0.1:1", "unix:/x"]
    assert settings.server_address == "127.0.0.1:1"
    assert config.load({"target": "unix:/y"}, {}).server_address == "unix:/y"
