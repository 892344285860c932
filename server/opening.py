"""How a process comes to its open deployment: the embedded store or a given one, and the keyring's passphrase."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from engine.deployment import Deployment, Durability
from engine.errors import ConfigError, DeploymentMismatch, SetupError, StoreInUse
from engine.key_service import ServiceUnlock
from engine.state.server import EmbeddedServer, running_url
from engine.wrapping import MovingUnlock, PassphraseUnlock, Unlock
from server import key_services
from server.config import PASSPHRASE_VARIABLE, Settings
from server.gate import Gate
from server.issuers import Issuers
from server.issuing import Issuing
from server.roles import Role
from server.tls import Certificates, Files

PASSPHRASE_RANDOM_BYTES: Final = 32

_log = logging.getLogger(__name__)

Ask = Callable[[], str]
"""Asks a person for the passphrase; '' when there is nobody to ask."""


def find_unlock(settings: Settings, environ: Mapping[str, str], *, ask: Ask | None = None) -> Unlock | None:
    """Find what opens the keyring: the key service of the settings, or a passphrase.

    With both, the keyring is on its way from the passphrase to the service: both open it, the service's wraps it. Returns None
    when there is none: the keyring stays locked. Raises KeyringLocked and SetupError for one that can't be used.
    """
    if settings.key_service:
        service = ServiceUnlock(key_services.find(settings.key_service))
        passphrase = _find_passphrase(settings, environ, ask=None)
        return service if passphrase is None else MovingUnlock(service, passphrase)
    return _find_passphrase(settings, environ, ask=ask)


def _find_passphrase(
    settings: Settings, environ: Mapping[str, str], *, ask: Ask | None
) -> PassphraseUnlock | None:
    """The file of the settings, the environment, the data folder's own, a person."""
    if settings.passphrase_file is not None:
        return _from_file(settings.passphrase_file)
    if PASSPHRASE_VARIABLE in environ:
        return PassphraseUnlock.from_environment(PASSPHRASE_VARIABLE, environ)
    if settings.embedded and settings.own_passphrase_file.exists():
        return _from_file(settings.own_passphrase_file)
    typed = ask() if ask is not None else ""
    return PassphraseUnlock(typed.encode("utf-8", "surrogateescape")) if typed else None


def open_to_others(path: Path) -> int:
    """The mode of a file that others than its owner may read or write; 0 for one that is closed to them, or no file."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            return stat.S_IMODE(status.st_mode)
    return 0


def _from_file(path: Path) -> PassphraseUnlock:
    if mode := open_to_others(path):
        _log.warning(
            "the passphrase file %s is open to others (mode %04o): close it with chmod 600 %s",
            path,
            mode,
            path,
        )
    return PassphraseUnlock.from_file(path)


def make_passphrase_file(path: Path) -> None:
    """Write a random passphrase to a new file, mode 0600, on disk before anything is wrapped with it.

    Raises SetupError when it can't be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(PASSPHRASE_RANDOM_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        raise SetupError(f"the passphrase file {path} can't be written: {error.strerror}") from None


@contextlib.contextmanager
def store(settings: Settings, *, share: bool = False) -> Iterator[str]:
    """Give the store's URL: the configured one, or that of the embedded store, which runs as long as the context.

    With `share` an embedded store that another process (the server) owns is used too, while that one runs.

    Raises:
        ConfigError, SetupError: the embedded store can't be started.
        StoreInUse: another process owns the data folder (without `share`).
    """
    if not settings.embedded:
        yield settings.store_url
        return
    if settings.durability == "replicated":
        raise ConfigError(
            "the embedded store has no replicas; use durability fsync, or name a store by --store",
            field="durability",
        )
    embedded = EmbeddedServer(
        settings.data_dir,
        durability=settings.durability,
        binary=settings.store_binary,
    )
    try:
        embedded.start()
    except StoreInUse:
        url = running_url(settings.data_dir) if share else ""
        if not url:
            raise
        yield url
        return
    try:
        yield embedded.url
    finally:
        embedded.stop()


def create(
    url: str, settings: Settings, environ: Mapping[str, str], *, ask: Ask | None = None
) -> Path | None:
    """Create a deployment in an empty store; returns the passphrase file if one was made for it.

    The embedded mode makes itself a passphrase when none is given. Raises DeploymentMismatch when there is a deployment
    already, SetupError without a passphrase, and what `Deployment.create` raises.
    """
    if Deployment.exists(url):
        raise DeploymentMismatch("the store holds a deployment already: nothing was changed")
    if _lasts(settings) and settings.deployment_marker.exists():
        # New keys in place of lost ones would turn every code that is out there into a forgery, and sell its stock again.
        raise DeploymentMismatch(
            f"the store in {settings.data_dir} held a deployment and is empty now: restore a backup of the folder, or "
            f"fill it with `pickgate ledger rebuild`; to begin anew, remove {settings.deployment_marker} first"
        )
    unlock = find_unlock(settings, environ, ask=ask)
    made = None
    if unlock is None:
        if not settings.embedded:
            raise SetupError(
                "a new deployment needs a passphrase for its keyring: give it by --passphrase-file, "
                f"PICKGATE_PASSPHRASE_FILE or {PASSPHRASE_VARIABLE}",
                field="passphrase_file",
            )
        made = settings.own_passphrase_file
        make_passphrase_file(made)
        unlock = PassphraseUnlock.from_file(made)
    Deployment.create(
        url,
        unlock=unlock,
        durability=Durability(settings.durability),
        replicas=settings.replicas,
        partitions=settings.partitions,
    )
    _mark(settings)
    return made


def _mark(settings: Settings) -> None:
    """Write that the embedded store of the folder holds a deployment, on disk before a call is answered."""
    if not _lasts(settings) or settings.deployment_marker.exists():
        return
    try:
        fd = os.open(settings.deployment_marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(fd)
        _sync_folder(settings.data_dir)
    except OSError as error:
        raise SetupError(
            f"{settings.deployment_marker} can't be written: {error.strerror}", field="data_dir"
        ) from None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lasts(settings: Settings) -> bool:
    """True when what is in the store outlives it: then an empty one is a loss. One in memory begins empty each time."""
    return settings.embedded and settings.durability != "memory"


def open_deployment(
    url: str, settings: Settings, environ: Mapping[str, str], *, ask: Ask | None = None
) -> Deployment:
    """Open the deployment in a store. Without a passphrase its keyring stays locked.

    Raises what `Deployment.open` raises, KeyringLocked for a passphrase file that can't be read, and SetupError for an
    embedded store's folder that can't be written.
    """
    deployment = Deployment.open(
        url,
        unlock=find_unlock(settings, environ, ask=ask),
        durability=Durability(settings.durability),
        replicas=settings.replicas,
        # The default is no statement: only a number that was configured must agree.
        partitions=settings.partitions if "partitions" in settings.model_fields_set else None,
        ledger_lag_s_max=settings.ledger_lag_s_max,
    )
    try:
        # At each opening: a folder that was made before there were markers, or restored without its own, gets one too.
        _mark(settings)
    except SetupError:
        deployment.close()
        raise
    return deployment


def certificates(settings: Settings) -> Certificates | None:
    """The certificates of the settings, read and found whole; None without TLS. Raises SetupError."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Certificates(Files(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file))


def gate(settings: Settings, deployment: Deployment) -> Gate | None:
    """What knows callers; None in development. Raises ConfigError, SetupError."""
    if not settings.knows_callers:
        return None
    return Gate(
        deployment,
        trust_domain=settings.trust_domain,
        issuers=None if settings.issuers_file is None else Issuers(settings.issuers_file),
        socket_role=Role(settings.socket_role) if settings.socket_role else None,
    )


def issuing(settings: Settings) -> Issuing | None:
    """What signs terminals' certificates; None when none are given out. Raises SetupError."""
    if settings.issuing_cert_file is None or settings.issuing_key_file is None:
        return None
    made = Issuing(
        settings.issuing_cert_file,
        settings.issuing_key_file,
        trust_domain=settings.trust_domain,
        days=settings.terminal_certificate_days,
    )
    if settings.tls_ca_file is not None:
        made.check_trusted(settings.tls_ca_file)
    return made
