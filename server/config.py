"""Configuration: flags over environment over file over defaults, with checked types.

The file is TOML with the keys of `Settings` at its top level; its name comes from --config, PICKGATE_CONFIG, or is
`pickgate.toml` in the current folder if there is one. In the environment a key is written PICKGATE_<KEY>, lists separated
by commas. Every mistake is a ConfigError that names the key, its value, where it came from, and what was expected.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine import limits
from engine.errors import ConfigError
from engine.ledger.daily import AT_DEFAULT, CHECKPOINT_AT_DEFAULT
from engine.state.store_url import redacted
from server import bounds

PREFIX: Final = "PICKGATE_"
FILE_VARIABLE: Final = "PICKGATE_CONFIG"
FILE_DEFAULT: Final = "pickgate.toml"
PASSPHRASE_VARIABLE: Final = "PICKGATE_PASSPHRASE"
"""The passphrase itself; a file is better, since a process' environment can be read by more than itself."""
PASSPHRASE_BESIDE_DATA: Final = (
    "the keyring's passphrase lies beside the data it protects: whoever copies the folder has both; "
    "move the file elsewhere and name it by --passphrase-file"
)
PORT_DEFAULT: Final = 7425
"""P-I-C-K on a telephone's keys; in the user range of RFC 6335, above the ports that need privileges."""

_OTHER_VARIABLES: Final = frozenset(
    {FILE_VARIABLE, PASSPHRASE_VARIABLE, "PICKGATE_PURE", "PICKGATE_BUILD", "PICKGATE_SOAK"}
)
# Kubernetes sets these in every container beside a Service that is called "pickgate".
_FOREIGN_VARIABLES: Final = re.compile(r"PICKGATE_(SERVICE_(HOST|PORT).*|PORT|PORT_\d+_.*)")
_PATHS: Final = frozenset(
    {
        *("data_dir", "store_binary", "passphrase_file", "ledger_key_file", "ledger_heads_dir"),
        *("tls_cert_file", "tls_key_file", "tls_ca_file", "issuers_file"),
        *("issuing_cert_file", "issuing_key_file"),
        *("target_ca_file", "target_cert_file", "target_key_file", "token_file"),
    }
)
_SOCKET_PATH_BYTES_MAX: Final = 107
"""unix(7): sun_path has 108 bytes, one of them the closing zero."""


@dataclass(frozen=True, slots=True)
class Listen:
    """One address to listen on, as gRPC writes it; `port` 0 asks for a free one, None is a unix socket."""

    address: str
    port: int | None

    @property
    def local(self) -> bool:
        """True when only this machine reaches it: a loopback address or a unix socket."""
        host = self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")
        if self.port is None or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def plain_trouble(self) -> str:
        """Why it may not be listened on without TLS; '' if it may. What goes over it can be read, and changed, on the way."""
        if self.local:
            return ""
        return (
            f"{self.address} can be reached from other machines, and there is no TLS: name a certificate by tls_cert_file and"
            " tls_key_file (`pickgate certs dev` makes some for trials), or listen on 127.0.0.1, [::1] or a unix socket"
        )


def parse_listen(text: str) -> Listen:
    """Read "host:port" or "unix:/path". Raises ValueError."""
    if "\0" in text:
        raise ValueError("an address holds no NUL")
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path or len(path.encode()) > _SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"a socket's path has 1 .. {_SOCKET_PATH_BYTES_MAX} bytes")
        return Listen(f"unix:{path}", None)
    host, colon, port = text.rpartition(":")
    if (
        not colon
        or not host
        or not (port.isascii() and port.isdigit() and len(port) <= 5)
        or int(port) > 65_535
    ):
        raise ValueError("write host:port or unix:/path")
    if ":" in host or "[" in host or "]" in host:
        try:
            if not (host.startswith("[") and host.endswith("]")):
                raise ValueError
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("write an IPv6 address in brackets, [::1]:port") from None
    return Listen(f"{host}:{int(port)}", int(port))


def _listens(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return tuple(parse_listen(part) if isinstance(part, str) else part for part in value)
    return value


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _no_nul(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path holds no NUL")
    return path


_Path = Annotated[Path, AfterValidator(_no_nul)]
_Whole = Annotated[int, BeforeValidator(_no_bool)]
_Seconds = Annotated[float, BeforeValidator(_no_bool)]


class Settings(BaseModel):
    """All settings. A field's description is what an error message says was expected."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)

    # --- where the state is
    data_dir: _Path = Field(description="a folder for the embedded store and its keys")
    store_url: str = Field(
        default="",
        description="redis://host:port/0, rediss://host:port/0, unix:///path, redis+cluster://host:port,host:port or"
        " rediss+cluster://host:port,host:port, or '' for the embedded store",
        pattern=r"^((rediss?(\+cluster)?|unix)://.+)?$",
    )
    store_binary: _Path | None = Field(default=None, description="path of a valkey-server or redis-server")
    durability: Literal["memory", "fsync", "replicated"] = Field(
        default="fsync", description="memory, fsync or replicated"
    )
    replicas: _Whole = Field(default=0, ge=0, le=16, description="0 .. 16 copies that must have each change")
    partitions: _Whole = Field(
        default=limits.PARTITIONS_DEFAULT,
        ge=1,
        le=limits.PARTITIONS_MAX,
        description=f"1 .. {limits.PARTITIONS_MAX}, when the deployment is created",
    )
    passphrase_file: _Path | None = Field(
        default=None, description="path of a file with the keyring's passphrase"
    )
    key_service: str = Field(
        default="",
        description="NAME:REST, for example software:/path, or '' for a passphrase",
        pattern=r"^([A-Za-z0-9_.-]{1,64}:.{1,500})?$",
    )
    key_rotation_h: _Whole = Field(
        default=limits.KEY_AGE_S_DEFAULT // 3600,
        ge=0,
        le=24 * 31,
        description="0 .. 744 hours after which keys of dynamic and valuable codes are replaced, 0 for never",
    )

    # --- the ledger
    ledger_url: str = Field(
        default="",
        description="sqlite:////path, postgresql://user:password@host/database, 'off', or '' for the file in data_dir",
        pattern=r"^(off|(sqlite|postgres(ql)?):.+)?$",
    )
    ledger_chain: Literal["sha256", "sm3"] = Field(default="sha256", description="sha256 or sm3")
    ledger_key_file: _Path | None = Field(default=None, description="path of an Ed25519 key in PEM")
    ledger_heads_dir: _Path | None = Field(default=None, description="a folder for the ledger's signed heads")
    ledger_reconcile_at: str = Field(
        default=AT_DEFAULT,
        description="a time of day and a time zone, for example '20:00 Asia/Shanghai', or 'off'",
        pattern=r"^(off|[0-9]{2}:[0-9]{2} \S{1,64})$",
    )
    ledger_checkpoint_at: str = Field(
        default=CHECKPOINT_AT_DEFAULT,
        description="a time of day and a time zone, for example '04:00 Asia/Shanghai', or 'off'",
        pattern=r"^(off|[0-9]{2}:[0-9]{2} \S{1,64})$",
    )
    ledger_freeze_on_drift: bool = Field(
        default=False, description="true or false: whether SKUs whose books differ are frozen"
    )
    ledger_events_days: int = Field(
        default=limits.LEDGER_EVENTS_DAYS,
        ge=limits.LEDGER_EVENTS_DAYS,
        le=36_525,
        description="days, 1096 .. 36525",
    )
    ledger_attempts_days: int = Field(
        default=limits.LEDGER_ATTEMPTS_DAYS, ge=184, le=36_525, description="days, 184 .. 36525"
    )
    ledger_lag_s_max: _Seconds = Field(
        default=limits.LEDGER_LAG_S_MAX,
        ge=10,
        le=86_400,
        description="10 .. 86400 seconds",
        allow_inf_nan=False,
    )

    # --- the server
    listen: Annotated[tuple[Listen, ...], BeforeValidator(_listens)] = Field(
        default=(Listen(f"127.0.0.1:{PORT_DEFAULT}", PORT_DEFAULT),),
        min_length=1,
        description="a list of addresses host:port or unix:/path; without TLS, loopback ones",
    )
    listen_mtls: Annotated[tuple[Listen, ...], BeforeValidator(_listens)] = Field(
        default=(), description="a list of addresses host:port on which a terminal's certificate is asked for"
    )
    tls_cert_file: _Path | None = Field(
        default=None, description="path of the server's certificate with its chain, in PEM"
    )
    tls_key_file: _Path | None = Field(default=None, description="path of its private key, in PEM")
    tls_ca_file: _Path | None = Field(
        default=None, description="path of the CAs whose certificates terminals show, in PEM"
    )
    issuers_file: _Path | None = Field(
        default=None, description="path of a TOML file with the issuers of access tokens"
    )
    issuing_cert_file: _Path | None = Field(
        default=None, description="path of the CA that signs terminals' certificates, in PEM"
    )
    issuing_key_file: _Path | None = Field(default=None, description="path of its private key, in PEM")
    terminal_certificate_days: _Whole = Field(
        default=90, ge=1, le=825, description="1 .. 825 days for which a terminal's certificate is good"
    )
    socket_role: Literal["", "operations", "administrator"] = Field(
        default="", description="operations, administrator, or '' for nobody"
    )
    trust_domain: str = Field(
        default="pickgate",
        description="a name of a-z, 0-9, '.', '_', '-': the first part of terminals' SPIFFE IDs",
        pattern=rf"^[a-z0-9._-]{{1,{bounds.TRUST_DOMAIN_CHARS_MAX}}}$",
    )
    threads: _Whole = Field(
        default=bounds.THREADS_DEFAULT,
        ge=1,
        le=bounds.THREADS_MAX,
        description=f"1 .. {bounds.THREADS_MAX} calls worked on at the same time",
    )
    workers: _Whole = Field(
        default=1,
        ge=1,
        le=bounds.WORKERS_MAX,
        description=f"1 .. {bounds.WORKERS_MAX} processes that share the ports",
    )
    lane: Literal["auto", "off"] = Field(default="auto", description="auto or off")
    grace_s: _Seconds = Field(
        default=bounds.GRACE_S_DEFAULT,
        ge=0,
        le=bounds.GRACE_S_MAX,
        description=f"0 .. {bounds.GRACE_S_MAX:g} seconds",
        allow_inf_nan=False,
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )

    # --- the clients among the commands
    target: str = Field(default="", description="address of a server, host:port or unix:/path")
    target_ca_file: _Path | None = Field(
        default=None, description="path of the CAs of the server that is asked, in PEM"
    )
    target_cert_file: _Path | None = Field(
        default=None, description="path of the certificate that a client shows, in PEM"
    )
    target_key_file: _Path | None = Field(default=None, description="path of its private key, in PEM")
    token_file: _Path | None = Field(default=None, description="path of a file with an access token")
    timeout_s: _Seconds = Field(
        default=bounds.CLIENT_TIMEOUT_S_DEFAULT,
        gt=0,
        le=600,
        description="more than 0, up to 600 seconds",
        allow_inf_nan=False,
    )
    mall_id: _Whole = Field(default=0, ge=0, le=limits.ID_MAX, description=f"a mall, 1 .. {limits.ID_MAX}")
    store_id: _Whole = Field(default=0, ge=0, le=limits.ID_MAX, description=f"a store, 1 .. {limits.ID_MAX}")
    terminal_id: _Whole = Field(
        default=0, ge=0, le=limits.ID_MAX, description=f"a terminal, 1 .. {limits.ID_MAX}"
    )

    @property
    def embedded(self) -> bool:
        """True when the server brings its own store."""
        return not self.store_url

    @property
    def knows_callers(self) -> bool:
        """False in development: no certificates and no issuers, and whoever reaches a listener may do everything."""
        return self.tls_cert_file is not None or self.issuers_file is not None

    @property
    def own_passphrase_file(self) -> Path:
        """Where the embedded mode keeps the passphrase that it made itself."""
        return self.data_dir / "passphrase"

    @property
    def deployment_marker(self) -> Path:
        """A file that says that the embedded store of this folder holds a deployment, written when it was created."""
        return self.data_dir / "deployment"

    @property
    def ledger_address(self) -> str:
        """Where the ledger is; '' for none: it is off, or an external store's is not named, or the store keeps nothing itself."""
        if self.ledger_url:
            return "" if self.ledger_url == "off" else self.ledger_url
        if not self.embedded or self.durability == "memory":
            return ""
        return f"sqlite:///{quote(str(self.data_dir.absolute() / 'ledger.sqlite3'))}"

    @property
    def ledger_key(self) -> Path:
        """The key that signs the ledger's heads."""
        return self.ledger_key_file or self.data_dir / "ledger-key.pem"

    @property
    def ledger_heads(self) -> Path:
        """Where the ledger's signed heads are."""
        return self.ledger_heads_dir or self.data_dir / "ledger-heads"

    @property
    def server_address(self) -> str:
        """Where clients find the server: `target`, or the first address it listens on."""
        return self.target or self.listen[0].address


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    file: Path | None = None,
    folder: Path | None = None,
) -> Settings:
    """Put the settings together.

    Args:
        flags: settings given on the command line, by key; None means not given.
        environ: the environment.
        file: the configuration file; None: the one of PICKGATE_CONFIG, else `pickgate.toml` in `folder`, if there.
        folder: the current folder; None means Path.cwd().

    Raises:
        ConfigError: an unknown key, a wrong type or value, a file that can't be read.
    """
    folder = folder or Path.cwd()
    layers: list[tuple[str, Mapping[str, object]]] = [
        ("the default", {"data_dir": _data_dir_default(environ, folder)}),
        _file_layer(environ, file, folder),
        ("the environment", _environment_layer(environ)),
        ("the command line", {key: value for key, value in flags.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, values, origins) from None
    for key, why in _contradictions(settings):
        raise ConfigError(
            f"{key} = {_shown(key, values.get(key))} (from {origins.get(key, 'the default')}): {why}",
            field=key,
        )
    return settings


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """What is wrong with settings that are right by themselves: the key at fault, and why."""
    for one, other in (
        ("tls_cert_file", "tls_key_file"),
        ("tls_key_file", "tls_cert_file"),
        ("target_cert_file", "target_key_file"),
        ("target_key_file", "target_cert_file"),
        ("listen_mtls", "tls_cert_file"),
        ("listen_mtls", "tls_ca_file"),
        ("tls_ca_file", "tls_cert_file"),
        ("issuing_cert_file", "issuing_key_file"),
        ("issuing_key_file", "issuing_cert_file"),
        ("issuing_cert_file", "tls_ca_file"),
    ):
        if getattr(settings, one) and not getattr(settings, other):
            yield one, f"it needs {other} too"
    if settings.tls_cert_file is None:
        for listen in settings.listen:
            if trouble := listen.plain_trouble():
                yield "listen", trouble
    if settings.tls_cert_file and not (settings.listen_mtls or settings.issuers_file):
        yield "tls_cert_file", "nobody could be known: it needs listen_mtls, issuers_file, or both"
    if settings.socket_role and not settings.knows_callers:
        yield "socket_role", "without certificates and issuers everybody may do everything anyway"
    if any(listen.port is None for listen in settings.listen_mtls):
        yield (
            "listen_mtls",
            "a unix socket has no TLS, so nobody shows a certificate there; list it in listen",
        )


def _data_dir_default(environ: Mapping[str, str], folder: Path) -> Path:
    """$XDG_STATE_HOME/pickgate (XDG Base Directory Specification 0.8), else pickgate-data in the current folder."""
    state_home = environ.get("XDG_STATE_HOME", "")
    return Path(state_home) / "pickgate" if state_home.startswith("/") else folder / "pickgate-data"


def _file_layer(environ: Mapping[str, str], file: Path | None, folder: Path) -> tuple[str, dict[str, object]]:
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    if file is None:
        file = folder / FILE_DEFAULT
        if not file.exists():
            return "", {}
    try:
        with file.open("rb") as content:
            values = tomllib.load(content)
    except OSError as error:
        raise ConfigError(
            f"the configuration file {file} can't be read: {error.strerror}", field="config"
        ) from None
    except RecursionError:
        raise ConfigError(f"the configuration file {file} is nested too deeply", field="config") from None
    except ValueError as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise ConfigError(f"the configuration file {file} is not TOML: {error}", field="config") from None
    for key in _PATHS & values.keys():
        if isinstance(values[key], str):
            # A path in a file means the same from wherever the command is run.
            values[key] = str(file.absolute().parent / values[key])
    return str(file), values


def _environment_layer(environ: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in _OTHER_VARIABLES or _FOREIGN_VARIABLES.fullmatch(name):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key not in Settings.model_fields:
            # Never its value: a mistyped PICKGATE_PASSPHRASE holds the passphrase.
            raise _unknown(key, name, "the environment")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(f"{name} (from the environment) is not UTF-8", field=key) from None
        values[key] = value
    return values


def _config_error(
    error: ValidationError, values: Mapping[str, object], origins: Mapping[str, str]
) -> ConfigError:
    first = error.errors(include_url=False, include_context=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    value = _shown(key, values.get(key))
    origin = origins.get(key, "the default")
    if first["type"] == "extra_forbidden":
        return _unknown(key, key, origin)
    expected = Settings.model_fields[key].description
    why = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{key} = {value} (from {origin}): {why}; expected {expected}", field=key)


def _unknown(key: str, written: str, origin: str) -> ConfigError:
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(Settings.model_fields)}"
    written = written if len(written) <= bounds.SHOWN_CHARS_MAX else written[: bounds.SHOWN_CHARS_MAX] + "…"
    return ConfigError(f"{written} (from {origin}): there is no such setting; {hint}", field=key)


def _shown(key: str, value: object) -> str:
    if key in ("store_url", "ledger_url") and isinstance(value, str):
        value = redacted(value)
    shown = repr(str(value) if isinstance(value, Path) else value)
    return shown if len(shown) <= bounds.SHOWN_CHARS_MAX else shown[: bounds.SHOWN_CHARS_MAX] + "…"
