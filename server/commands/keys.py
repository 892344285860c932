"""`pickgate keys`: the keyring, worked on in the store itself, because key material never crosses the gRPC contract."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console as RichConsole

from engine import keyring as keyrings
from engine.claims import Suite, Version
from engine.deployment import Deployment
from engine.key_service import SoftwareKeyService
from engine.keyring import Keyring, KeySummary, Purpose
from engine.wrapping import PassphraseUnlock, Unlock
from server import opening
from server.client import new_request_id
from server.commands import parameters
from server.console import Console, ask_passphrase, command, table
from server.hardening import keep_memory_private

Change = Callable[[Keyring, int, Callable[[int], bytes]], Keyring]

_VERSIONS = {version.name.lower(): version for version in Version}
_SUITES = {suite.name.lower(): suite for suite in Suite}

_kid = click.argument("kid", type=click.IntRange(1, keyrings.KID_MAX))


@click.group("keys")
def keys() -> None:
    """The keys that seal and open codes.

    A running server takes a change over within a second; several servers on one store all do.
    """


def _store_options(function: parameters.F) -> parameters.F:
    for option in (
        click.option("--passphrase-file", type=click.Path(path_type=Path)),
        click.option("--store", "store_url", metavar="URL"),
        click.option("--data-dir", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


def _slot_options(function: parameters.F) -> parameters.F:
    for option in (
        click.option("--suite", type=click.Choice(list(_SUITES)), default="aes", show_default=True),
        click.option("--version", type=click.Choice(list(_VERSIONS)), help="For purpose payload."),
        click.option(
            "--purpose",
            type=click.Choice([purpose.value for purpose in Purpose]),
            default="payload",
            show_default=True,
        ),
    ):
        function = option(function)
    return function


@contextlib.contextmanager
def _deployment(
    console: Console, data_dir: Path | None, store_url: str | None, passphrase_file: Path | None
) -> Iterator[Deployment]:
    keep_memory_private()
    settings = console.settings(data_dir=data_dir, store_url=store_url, passphrase_file=passphrase_file)
    with (
        opening.store(settings, share=True) as url,
        opening.open_deployment(url, settings, os.environ, ask=ask_passphrase) as deployment,
    ):
        yield deployment


def _summary(key: KeySummary) -> dict[str, object]:
    """One key for machines."""
    return {
        **dataclasses.asdict(key),
        "version": None if key.version is None else key.version.name.lower(),
        "suite": key.suite.name.lower(),
    }


def _moment(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().isoformat(sep=" ") if at_s else ""


def _show(console: Console, found: tuple[KeySummary, ...], headline: str) -> None:
    def show(rich: RichConsole) -> None:
        made = table(
            headline, "#kid", "purpose", "version", "suite", "state", "opens", "activated", "usable until"
        )
        for key in found:
            made.add_row(
                str(key.kid),
                key.purpose.value,
                "" if key.version is None else key.version.name.lower(),
                key.suite.name.lower(),
                key.state.value,
                "yes" if key.usable else "no",
                _moment(key.activated_at_s),
                _moment(key.usable_until_s),
            )
        rich.print(made)

    console.emit({"keys": [_summary(key) for key in found]}, show)


def _change(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    passphrase_file: Path | None,
    headline: str,
    change: Change,
) -> None:
    """Apply one change to the keyring, and show the keys that it made or touched."""
    with _deployment(console, data_dir, store_url, passphrase_file) as deployment:
        before: dict[int, object] = {}

        def remembering(keyring: Keyring, now_s: int, random: Callable[[int], bytes]) -> Keyring:
            before.update({record.kid: record for record in keyring.records})
            return change(keyring, now_s, random)

        changed = deployment.control.change_keyring(
            remembering, request_id=new_request_id(), actor="command line"
        )
        touched = {record.kid for record in changed.records if before.get(record.kid) != record}
        now_s = deployment.now_ms() // 1000
    _show(console, tuple(key for key in keyrings.list_keys(changed, now_s) if key.kid in touched), headline)


@keys.command("list")
@_store_options
@command
def list_keys(
    console: Console, data_dir: Path | None, store_url: str | None, passphrase_file: Path | None
) -> None:
    """List every key there is and was. No key material is shown."""
    with _deployment(console, data_dir, store_url, passphrase_file) as deployment:
        copy = deployment.control.refresh()
        copy.usable_keys()
        assert copy.keyring is not None
        found = keyrings.list_keys(copy.keyring, deployment.now_ms() // 1000)
    _show(console, found, "Keys")


@keys.command("create")
@_slot_options
@click.option("--activate", is_flag=True, help="Use it at once; only where there is no active key.")
@_store_options
@command
def create(
    console: Console,
    purpose: str,
    version: str | None,
    suite: str,
    activate: bool,
    data_dir: Path | None,
    store_url: str | None,
    passphrase_file: Path | None,
) -> None:
    """Make a key, pending until it is activated."""
    _change(
        console,
        data_dir,
        store_url,
        passphrase_file,
        "Created",
        lambda keyring, now_s, random: keyrings.create(
            keyring,
            Purpose(purpose),
            _VERSIONS[version] if version else None,
            _SUITES[suite],
            now_s=now_s,
            random=random,
            activate=activate,
        ),
    )


@keys.command("activate")
@_kid
@_store_options
@command
def activate(
    console: Console, kid: int, data_dir: Path | None, store_url: str | None, passphrase_file: Path | None
) -> None:
    """Let the pending key KID take over; the active one of its kind becomes verify-only."""
    _change(
        console,
        data_dir,
        store_url,
        passphrase_file,
        "Activated",
        lambda keyring, now_s, random: keyrings.activate(keyring, kid, now_s=now_s),
    )


@keys.command("rotate")
@_slot_options
@_store_options
@command
def rotate(
    console: Console,
    purpose: str,
    version: str | None,
    suite: str,
    data_dir: Path | None,
    store_url: str | None,
    passphrase_file: Path | None,
) -> None:
    """Make a new active key; the one before stays verify-only for as long as anything it made may be shown."""
    _change(
        console,
        data_dir,
        store_url,
        passphrase_file,
        "Rotated",
        lambda keyring, now_s, random: keyrings.rotate(
            keyring,
            Purpose(purpose),
            _VERSIONS[version] if version else None,
            _SUITES[suite],
            now_s=now_s,
            random=random,
        ),
    )


@keys.command("disable")
@_kid
@_store_options
@command
def disable(
    console: Console, kid: int, data_dir: Path | None, store_url: str | None, passphrase_file: Path | None
) -> None:
    """Emergency stop: KID opens nothing any more, and never will again. Create or rotate a successor yourself."""
    _change(
        console,
        data_dir,
        store_url,
        passphrase_file,
        "Disabled",
        lambda keyring, now_s, random: keyrings.disable(keyring, kid, now_s=now_s),
    )


@keys.command("destroy")
@_kid
@_store_options
@command
def destroy(
    console: Console, kid: int, data_dir: Path | None, store_url: str | None, passphrase_file: Path | None
) -> None:
    """Wipe the secrets of KID: only of pending, disabled, or verify-only keys past their time."""
    _change(
        console,
        data_dir,
        store_url,
        passphrase_file,
        "Destroyed",
        lambda keyring, now_s, random: keyrings.destroy(keyring, kid, now_s=now_s),
    )


# --- what wraps them --------------------------------------------------------------------------------------------------
@keys.command("rewrap")
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    help="Wrap with this passphrase from now on, instead of the configured provider.",
)
@_store_options
@command
def rewrap(
    console: Console,
    new_passphrase_file: Path | None,
    data_dir: Path | None,
    store_url: str | None,
    passphrase_file: Path | None,
) -> None:
    """Wrap the keyring anew: under a new data key of the key service, or with another passphrase.

    From a passphrase to a key service: configure both everywhere, restart the servers, rewrap, take the passphrase away. With another
    passphrase the servers must be given it at once: until then they answer UNAVAILABLE.
    """
    keep_memory_private()
    settings = console.settings(data_dir=data_dir, store_url=store_url, passphrase_file=passphrase_file)
    unlock: Unlock | None
    if new_passphrase_file is not None:
        unlock = PassphraseUnlock.from_file(new_passphrase_file)
    else:
        unlock = opening.find_unlock(settings, os.environ, ask=ask_passphrase)
    with _deployment(console, data_dir, store_url, passphrase_file) as deployment:
        # Without a passphrase there was nothing to open it with, and that has been said.
        deployment.control.refresh().usable_keys()
        assert unlock is not None
        changed = deployment.control.rewrap(unlock, request_id=new_request_id(), actor="command line")
        named = "passphrase" if unlock.scheme == 1 else settings.key_service
    console.emit(
        {"revision": changed.revision, "wrapped_by": named},
        lambda rich: rich.print(f"[bold green]REWRAPPED[/]  revision {changed.revision}, by {named}"),
    )


@keys.group("service")
def service() -> None:
    """The key service whose keys lie in a file (setting `key_service = "software:PATH"`)."""


@service.command("create")
@click.argument("path", type=click.Path(path_type=Path))
@command
def create_service(console: Console, path: Path) -> None:
    """Make PATH with a first key. Keep a copy of it apart from the store's backups: without it the keyring is lost."""
    made = SoftwareKeyService.create(path)
    console.emit({"key_service": made.name}, lambda rich: rich.print(f"[bold green]CREATED[/]  {made.name}"))


@service.command("rotate")
@click.argument("path", type=click.Path(path_type=Path))
@command
def rotate_service(console: Console, path: Path) -> None:
    """Add a key to PATH that wraps from now on; then `keys rewrap` takes it into use. The ones before it still open."""
    key_id = SoftwareKeyService(path).rotate()
    console.emit(
        {"active": key_id}, lambda rich: rich.print(f"[bold green]ROTATED[/]  {key_id} wraps from now on")
    )
