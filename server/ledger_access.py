"""The ledger as this server reads it: opened when it is first asked for, and the subscriptions that follow it.

The ledger is made, and written, by another process (server.ledger_process), which may be slower to start than this one, or not run at all:
so serving never waits for it, and calls that need it say what is wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine.deployment import Deployment
from engine.errors import (
    DeploymentMismatch,
    LedgerOff,
    LedgerUnavailable,
    PickgateError,
    SetupError,
)
from engine.ledger.feeds import Feeds
from engine.ledger.heads import SignedHeads
from engine.ledger.ledger import Ledger
from server import bounds


class LedgerAccess:
    """The ledger at an address; for many threads at once.

    Args:
        url: where it is; '' for none: then everything is refused as LEDGER_OFF.
        deployment: whose it must be.
        heads_dir: where its signed heads are, if this machine has them; None: nowhere.
        monotonic_s: the clock of the waits.
    """

    def __init__(
        self,
        url: str,
        deployment: Deployment,
        *,
        heads_dir: Path | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._heads_dir = heads_dir
        self._deployment = deployment
        self._monotonic_s = monotonic_s
        self._guard = threading.Lock()
        self._ledger: Ledger | None = None
        self._refusal: PickgateError | None = None
        self._tried_at_s = float("-inf")
        self.feeds = Feeds(self.ledger, monotonic_s=monotonic_s)
        """Those who follow it."""

    def ledger(self) -> Ledger:
        """The open ledger. Raises LedgerOff, LedgerUnavailable, DeploymentMismatch."""
        if not self._url:
            raise LedgerOff(
                "this server has no ledger, so nothing of it can be told: ask one that has, or name one by ledger_url"
            )
        with self._guard:
            if self._ledger is None:
                if (
                    self._refusal is not None
                    and self._monotonic_s() - self._tried_at_s < bounds.LEDGER_OPEN_S
                ):
                    raise self._refusal
                self._tried_at_s = self._monotonic_s()
                try:
                    self._ledger = self._open()
                except PickgateError as error:
                    self._refusal = error
                    raise
            return self._ledger

    def signed_heads(self) -> SignedHeads | None:
        """What was signed of it, as it is now; None when it is not on this machine. Raises SetupError."""
        return None if self._heads_dir is None else SignedHeads.open(self._heads_dir)

    def _open(self) -> Ledger:
        # Whose it is, is looked at here: told to `open`, an empty one would be made ours, and its chain is not this process' to choose.
        try:
            ledger = Ledger.open(self._url)
        except DeploymentMismatch as error:
            raise LedgerUnavailable(f"{error.message}: its writer has not begun yet") from error
        except SetupError as error:
            raise LedgerUnavailable(error.message) from error
        ours = self._deployment.constants.deployment_id
        if ledger.deployment_id != ours:
            ledger.close()
            raise DeploymentMismatch(
                f"the ledger belongs to deployment {ledger.deployment_id}, the store holds {ours}: name another"
                " ledger by ledger_url",
                field="ledger_url",
            )
        return ledger

    def close(self) -> None:
        """Close the ledger, when no call is worked on any more. Closing twice changes nothing."""
        self.feeds.close()
        with self._guard:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
