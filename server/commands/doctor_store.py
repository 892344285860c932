"""What `pickgate doctor` looks at behind the store's door: settings, deployment, clocks, keys. It needs the kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from engine import limits
from engine.claims import Suite, Version
from engine.deployment import Deployment
from engine.errors import DeploymentMismatch, KeyringLocked, NoActiveKey, PickgateError
from engine.keyring import KeyState, Purpose
from engine.state import allocator
from engine.state.store_url import redacted
from server import opening
from server.config import Settings
from server.findings import Finding, Level

SKEW_MS_WARN: Final = limits.CLOCK_SKEW_MS_MAX // 5


def examine(settings: Settings, ask: opening.Ask | None) -> Iterator[Finding]:
    """Look at the store, the deployment in it, the clocks and the keys. Nothing to see before the first start."""
    if settings.embedded and not settings.data_dir.is_dir():
        return
    where = str(settings.data_dir) if settings.embedded else redacted(settings.store_url)
    try:
        with opening.store(settings, share=True) as url:
            yield from _deployment(url, where, settings, ask)
    except PickgateError as error:
        yield Finding("store", Level.FAIL, error.message, "see the message; it says what to do")


def _deployment(url: str, where: str, settings: Settings, ask: opening.Ask | None) -> Iterator[Finding]:
    try:
        deployment = opening.open_deployment(url, settings, os.environ, ask=ask)
    except KeyringLocked as error:
        yield Finding("keyring", Level.FAIL, error.message, "give the right --passphrase-file")
        return
    except DeploymentMismatch as error:
        mend = "run `pickgate serve` once" if settings.embedded else "run `pickgate init --store URL`"
        yield Finding("deployment", Level.FAIL, error.message, mend)
        return
    with deployment:
        facts = deployment.connection.facts()
        version = ".".join(map(str, facts.version))
        yield Finding("store", Level.OK, f"{facts.product} {version} at {where}")
        yield _allocator(deployment, settings)
        yield Finding(
            "durability",
            Level.WARN if settings.durability == "memory" else Level.OK,
            f"{settings.durability} (appendonly {facts.settings.get('appendonly')}, appendfsync "
            f"{facts.settings.get('appendfsync')}, {facts.settings.get('maxmemory-policy')})",
            "a restart of the store forgets everything: for tests only"
            if settings.durability == "memory"
            else "",
        )
        constants = deployment.constants
        yield Finding("deployment", Level.OK, f"{constants.deployment_id}, {constants.partitions} partitions")
        yield _clock(deployment)
        yield from _keys(deployment)


def _allocator(deployment: Deployment, settings: Settings) -> Finding:
    """The allocator of the process that answers: of the embedded store, what is really loaded into it."""
    server, memory = map(dict, deployment.connection.read([("INFO", "server"), ("INFO", "memory")]))
    built = str(memory["mem_allocator"])
    if not settings.embedded or built != "libc":
        return Finding("allocator", Level.OK, built)
    try:
        loaded = allocator.loaded_from(int(server["process_id"]))
    except OSError as error:
        return Finding(
            "allocator",
            Level.WARN,
            f"{built}; whether mimalloc is in front of it can't be seen: {error.strerror}",
            "run as the user that runs the server",
        )
    if loaded:
        return Finding("allocator", Level.OK, f"mimalloc in front of {built} ({loaded})")
    return Finding(
        "allocator",
        Level.WARN,
        f"{built}, which costs time among many codes",
        f"pip install {allocator.DISTRIBUTION}, then start the server again; its log says if it can't be loaded",
    )


def _clock(deployment: Deployment) -> Finding:
    before_ms = deployment.now_ms()
    [(seconds, micros)] = deployment.connection.read([("TIME",)])
    # The reading lies somewhere within the round trip: half of it is the best guess.
    skew_ms = int(seconds) * 1000 + int(micros) // 1000 - (before_ms + deployment.now_ms()) // 2
    text = f"this machine and the store differ by {abs(skew_ms)} ms"
    mend = "synchronise both clocks (NTP)"
    if abs(skew_ms) > limits.CLOCK_SKEW_MS_MAX:
        return Finding(
            "clock", Level.FAIL, f"{text}: past {limits.CLOCK_SKEW_MS_MAX} ms all changes are refused", mend
        )
    return (
        Finding("clock", Level.WARN, text, mend)
        if abs(skew_ms) > SKEW_MS_WARN
        else Finding("clock", Level.OK, text)
    )


def _keys(deployment: Deployment) -> Iterator[Finding]:
    copy = deployment.control.copy()
    try:
        keys = copy.usable_keys()
    except KeyringLocked as error:
        yield Finding("keyring", Level.FAIL, error.message, "give the right --passphrase-file")
        return
    keyring = copy.keyring
    assert keyring is not None
    missing = []
    for version in Version:
        for suite in Suite:
            try:
                keys.active_kid(version, suite)
            except NoActiveKey:
                option = f"--version {version.name.lower()} --suite {suite.name.lower()}"
                missing.append((f"{version.name.lower()} {suite.name}", f"pickgate keys rotate {option}"))
    for purpose in (Purpose.UID, Purpose.SERIAL, Purpose.PIN):
        active = [
            record
            for record in keyring.records
            if record.purpose is purpose and record.state is KeyState.ACTIVE
        ]
        if not active:
            missing.append((purpose.value, f"pickgate keys rotate --purpose {purpose.value}"))
    yield Finding("keyring", Level.OK, f"opens; {len(keyring.records)} keys, revision {keyring.revision}")
    for what, mend in missing:
        yield Finding("keys", Level.FAIL, f"no active key for {what}", mend)
    if not missing:
        yield Finding(
            "keys", Level.OK, "an active key for every version and suite, and for uid, serial and PIN"
        )
