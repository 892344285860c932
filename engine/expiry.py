"""Expiry: codes end by themselves when their time has come, and are forgotten after their afterlife."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.state import due, transfers
from engine.state.due import Swept

__all__ = ["SWEEP_S", "Sweeper", "Swept", "sweep"]

_log = logging.getLogger(__name__)

SWEEP_S: Final = 5.0
"""Between two sweeps. An expired code is refused at once; only its stock comes back this much (and up to a minute) later."""


def sweep(deployment: Deployment, *, stopping: Callable[[], bool] = lambda: False) -> Swept:
    """Expire all that is due and release its stock; forget what ended 72 h ago; bring in transfers that were cut off.

    May run anywhere, any number of times. `stopping` is asked after every batch: once it says True, the rest is left for the
    next sweep.

    Raises StoreUnavailable and its like; what was done until then stays done.
    """
    swept, failed = due.sweep(
        deployment.connection, since_ms=deployment.constants.created_at_ms, stopping=stopping
    )
    try:
        transfers.complete(deployment.connection)
    finally:
        if failed is not None:
            raise failed
    return swept


class Sweeper:
    """Sweeps a deployment every few seconds, in a thread of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pickgate-sweeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch that is running."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        failing = False
        while not self._ending.wait(SWEEP_S):
            try:
                swept = sweep(self._deployment, stopping=self._ending.is_set)
            except PickgateError as error:
                if not failing:
                    _log.warning("the sweep for expired codes failed, and goes on: %s", error.message)
                failing = True
            except Exception:
                # A defect here must not end expiry for good: stock would stay reserved in silence.
                _log.exception("the sweep for expired codes failed, and goes on")
                failing = True
            else:
                failing = False
                if swept.expired or swept.forgotten:
                    _log.info("expired %d codes, forgot %d", swept.expired, swept.forgotten)
