"""`python -m loadtests.comparison --data-dir D --listen 127.0.0.1:0`: prints one JSON line with its addresses, serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import secrets
import signal
from pathlib import Path
from typing import Final

import uvloop
from grpc import aio
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from loadtests.comparison import service
from loadtests.comparison.client import Client
from loadtests.comparison.codes import Codes
from loadtests.comparison.payload import Key
from loadtests.comparison.setup import Setup
from loadtests.comparison.store import Store

CONNECTIONS: Final = 64
GRACE_S: Final = 5.0
SWEEP_S: Final = 1.0
KID: Final = 1
KEY_NAME: Final = "key:1"

_log = logging.getLogger(__name__)


async def serve(store: Store, listen: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    pool = BlockingConnectionPool(
        max_connections=CONNECTIONS,
        timeout=None,
        connection_class=UnixDomainSocketConnection,
        path=str(store.socket),
    )
    async with Redis(connection_pool=pool) as client:
        setup, codes = Setup(client), Codes(client)
        await setup.load()
        server = aio.server()
        service.add_services(server, codes, setup, await _key(client))
        address = listen
        port = server.add_insecure_port(listen)
        if not listen.startswith("unix:"):
            address = f"{listen.rpartition(':')[0]}:{port}"
        await server.start()
        stopped = _stopped()  # before anybody is told that there is something to stop
        print(json.dumps({"serving": [address], "store": f"unix://{store.socket}"}), flush=True)
        sweeper = asyncio.create_task(_sweep(codes))
        await stopped.wait()
        sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeper
        await server.stop(GRACE_S)
    await pool.aclose()


async def _key(client: Client) -> Key:
    """The key that seals and opens; made at the first start."""
    await client.setnx(KEY_NAME, secrets.token_bytes(32))
    return Key(KID, await client.get(KEY_NAME))


async def _sweep(codes: Codes) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await codes.expire_due()
        except Exception:
            _log.exception("the sweep failed")


def _stopped() -> asyncio.Event:
    """Set when the process is asked to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def main() -> None:
    """Start the store and serve over it."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.comparison", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    asked = parser.parse_args()
    logging.basicConfig(level="WARNING")
    with Store(asked.data_dir) as store:
        uvloop.run(serve(store, asked.listen))


if __name__ == "__main__":
    main()
