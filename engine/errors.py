"""Every error there is: a small tree, one stable slug per leaf.

A business "no" is never an error; it is a verdict (engine.verdict). An error says that the call could not be decided: bad
input, a reused request id, a store that can't be reached, a set-up that is wrong. Each message says what was wrong,
what was expected and what to do. `slug` is the machine's name of the error (google.rpc.ErrorInfo.reason) and never
changes; `field` names the offending input where there is one.
"""

from __future__ import annotations

from typing import ClassVar


class PickgateError(Exception):
    """Root of the tree. `slug` is stable; `field` is the path of the offending input or ''."""

    slug: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


# --- the caller's input --------------------------------------------------------------------------------------
class InvalidInput(PickgateError):
    """The request can't be understood or is out of range: never retry it unchanged."""

    slug = "INVALID_INPUT"


class UnknownMall(InvalidInput):
    """The mall named in the request is not registered."""

    slug = "UNKNOWN_MALL"


class TooManyItems(InvalidInput):
    """A batch or list exceeds its named limit."""

    slug = "TOO_MANY_ITEMS"


class RequestIdReused(PickgateError):
    """The request id was used before with another body."""

    slug = "REQUEST_ID_REUSED"


class NotFound(PickgateError):
    """A read names something that is not there."""

    slug = "NOT_FOUND"


# --- the caller --------------------------------------------------------------------------------------------------
class Unauthenticated(PickgateError):
    """It is not known who calls: no valid certificate or access token, or one that counts no more."""

    slug = "UNAUTHENTICATED"


class PermissionDenied(PickgateError):
    """The caller is known, and may not do this, or not here."""

    slug = "PERMISSION_DENIED"


class ConsumerTaken(PermissionDenied):
    """The name under which a feed is acknowledged belongs to another caller."""

    slug = "CONSUMER_TAKEN"


# --- the moment's condition: retry with the same request id ----------------------------------------------------
class Unavailable(PickgateError):
    """The call was not decided now; retrying with the same request id is always safe."""

    slug = "UNAVAILABLE"
    retry_after_ms: ClassVar[int] = 200


class StoreUnavailable(Unavailable):
    """The store (Redis/Valkey) is down, loading, full or too slow; what was sent may or may not have happened."""

    slug = "STORE_UNAVAILABLE"


class ClockSkew(Unavailable):
    """This process' clock differs from the store's by more than five seconds; nothing was written."""

    slug = "CLOCK_SKEW"


class NotReplicated(Unavailable):
    """The batch did not reach the required number of copies in time; it may still happen."""

    slug = "NOT_REPLICATED"


class StaleControl(Unavailable):
    """This process' copy of stores, catalogue and keys is too old to decide on."""

    slug = "STALE_CONTROL"


class KeyringLocked(Unavailable):
    """The keyring can't be unwrapped: no passphrase, or a wrong one."""

    slug = "KEYRING_LOCKED"
    retry_after_ms = 5_000


class LedgerUnavailable(Unavailable):
    """The ledger's database can't be reached, is busy for too long, or its disk is full."""

    slug = "LEDGER_UNAVAILABLE"
    retry_after_ms = 5_000


class LedgerBehind(Unavailable):
    """The ledger is so far behind the store that no new change is taken; nothing was written."""

    slug = "LEDGER_BEHIND"
    retry_after_ms = 5_000


class Stopping(Unavailable):
    """This process ends: what lasts, such as a watch, ends with it, and may begin anew elsewhere."""

    slug = "STOPPING"


class StockFull(Unavailable):
    """Units that left one store don't fit into the other's figure; they stay in transit until there is room."""

    slug = "STOCK_FULL"
    retry_after_ms = 5_000


class NoActiveKey(Unavailable):
    """No active key for the wanted version and suite."""

    slug = "NO_ACTIVE_KEY"
    retry_after_ms = 5_000


class Exhausted(PickgateError):
    """A named limit of the service is reached."""

    slug = "EXHAUSTED"
    retry_after_ms: ClassVar[int] = 1_000


class SlowDown(Exhausted):
    """This caller has presented too many forged codes or wrong PINs: it waits, then one more is looked at."""

    slug = "SLOW_DOWN"

    def __init__(self, message: str, *, field: str = "", wait_ms: int = Exhausted.retry_after_ms) -> None:
        super().__init__(message, field=field)
        # Of this one: how long depends on how many there were.
        self.retry_after_ms = wait_ms  # type: ignore[misc]


# --- cursors of the ledger's feeds ---------------------------------------------------------------------------
class CursorBack(PickgateError):
    """An acknowledgement lies behind the one that is stored: it was sent late, or its sender was put back to an older state."""

    slug = "CURSOR_BACK"


class CursorAhead(PickgateError):
    """A cursor lies beyond the ledger's end."""

    slug = "CURSOR_AHEAD"


class CursorCut(PickgateError):
    """What lies behind a cursor is no longer kept."""

    slug = "CURSOR_CUT"


# --- the set-up ----------------------------------------------------------------------------------------------
class SetupError(PickgateError):
    """The deployment or its configuration is wrong; starting is refused."""

    slug = "SETUP"


class ConfigError(SetupError):
    """A configuration key is unknown or has a wrong value."""

    slug = "CONFIG"


class StoreSettings(SetupError):
    """The store's real settings don't give the durability that was asked for."""

    slug = "STORE_SETTINGS"


class DeploymentMismatch(SetupError):
    """The store holds another deployment than the configuration says, or none."""

    slug = "DEPLOYMENT_MISMATCH"


class LedgerConflict(SetupError):
    """Store and ledger contradict each other, or the ledger itself: somebody must look before anything is added."""

    slug = "LEDGER_CONFLICT"


class LedgerOff(SetupError):
    """This process has no ledger, so what asks it can't be answered."""

    slug = "LEDGER_OFF"


class StoreBinaryMissing(SetupError):
    """No usable store server binary was found for the embedded store."""

    slug = "STORE_BINARY_MISSING"


class StoreInUse(SetupError):
    """The data folder is owned by another running process."""

    slug = "STORE_IN_USE"


class KeyStateError(SetupError):
    """A key operation is not allowed in the key's state (for example destroying an active key)."""

    slug = "KEY_STATE"


class Conflict(PickgateError):
    """Somebody else changed it meanwhile: read again, then repeat."""

    slug = "CONFLICT"
