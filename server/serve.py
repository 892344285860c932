"""The server: one gRPC port over one open deployment, with health and reflection, and a stop that loses nothing.

Without certificates it listens on loopback and unix sockets only.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine import limits
from engine.deployment import Deployment
from engine.errors import PickgateError, SetupError
from engine.expiry import Sweeper
from engine.ledger.feeds import SUBSCRIBERS_MAX
from engine.rotation import Rotator
from engine.sm_profile import Opener
from engine.stock_watch import WATCHERS_MAX, StockWatches
from server import bounds, lane_check, lane_methods, services, tls
from server.arrivals import Arrivals
from server.config import Listen
from server.gate import Gate
from server.issuing import Issuing
from server.ledger_access import LedgerAccess
from server.sealing import SealedHandlers, Sealing
from server.sightings import Sightings
from server.throttle import Throttle, ThrottledHandlers
from server.turns import Turns

_log = logging.getLogger(__name__)

_OPTIONS: Final = (
    # Above the largest request of any method; `services` bounds each method by itself and answers past it with a reason.
    ("grpc.max_receive_message_length", limits.BULK_MESSAGE_BYTES_MAX + limits.MESSAGE_BYTES_MAX),
    # Answers are bounded by what was asked: at most BULK_MAX outcomes, or the figures of one store.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", limits.MESSAGE_BYTES_MAX),
    # A terminal behind a mobile network may ping an idle connection to keep its NAT entry, not more often than this.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And a dead peer is noticed without it.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Nobody may hold what all need by keeping still: not a thread (server.arrivals), not a connection.
    ("grpc.max_concurrent_streams", bounds.STREAMS_PER_CONNECTION_MAX),
    ("grpc.server.max_pending_requests", bounds.PENDING_CALLS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 2 * bounds.PENDING_CALLS_MAX),
    ("grpc.server_handshake_timeout_ms", int(bounds.HANDSHAKE_S_MAX * 1000)),
    ("grpc.max_connection_idle_ms", int(bounds.CONNECTION_IDLE_S_MAX * 1000)),
)
_TLS_OPTIONS: Final = (
    # A certificate is looked at when a connection begins: none lasts so long that one which was replaced counts for ever.
    ("grpc.max_connection_age_ms", int(bounds.TLS_CONNECTION_AGE_S_MAX * 1000)),
)


class Server:
    """A gRPC server over an open deployment. Use it as a context manager, or call `start` and `stop`.

    Args:
        deployment: open; it stays the caller's to close, after `stop`. What expires in it is swept meanwhile.
        listen: where to listen, at least one.
        threads: calls worked on at the same time; those of health and reflection are not counted.
        look: raises PickgateError while calls can't be answered; asked each second for the health service.
        calls_max: calls of the ordinary handlers accepted and not yet answered; one more is RESOURCE_EXHAUSTED.
        queue_calls_max: the same for the hot lane.
        request_wait_s: how long a call may wait for its request, see server.arrivals.
        lane: whether the hot lane serves its methods (server.hotlane) if it works here (server.lane_check), or the ordinary
            handlers all of them.
        shares_ports: other processes listen on the same ports, and whoever reserved them has made sure that all are ours.
        sweeps: whether this process sweeps what expires, and rotates keys; of several, one.
        key_rotation_s: age at which keys of dynamic and valuable codes are replaced; 0 for never.
        certificates: for TLS on all ports, `listen`'s and `listen_mtls`'; started and stopped with the server.
        listen_mtls: where to listen besides, for callers who show a certificate.
        ledger_url: the ledger that is read for those who ask; '' for none. Another process writes it.
        ledger_heads: the folder of its signed heads, for those who have its chain verified; None: it is not on this machine.
        gate: knows callers, and what they may do; None: whoever reaches a listener may do everything. Started and stopped with the
            server.
        issuing: signs the certificates of terminals that enrol; None: none do.
    """

    def __init__(
        self,
        deployment: Deployment,
        listen: Sequence[Listen],
        *,
        threads: int = bounds.THREADS_DEFAULT,
        look: Callable[[], object],
        calls_max: int = bounds.CALLS_MAX,
        queue_calls_max: int = bounds.QUEUE_CALLS_MAX,
        request_wait_s: float = bounds.REQUEST_WAIT_S,
        lane: bool = True,
        shares_ports: bool = False,
        sweeps: bool = True,
        key_rotation_s: int = 0,
        certificates: tls.Certificates | None = None,
        listen_mtls: Sequence[Listen] = (),
        ledger_url: str = "",
        ledger_heads: Path | None = None,
        gate: Gate | None = None,
        issuing: Issuing | None = None,
    ) -> None:
        self._listen = tuple(listen)
        self._listen_mtls = tuple(listen_mtls)
        self._certificates = certificates
        self._gate = gate
        self._sightings = None if gate is None else Sightings(deployment, gate)
        self._look = look
        # A thread for each accepted call, most of them waiting; `threads` of them work.
        self._pool = ThreadPoolExecutor(calls_max, thread_name_prefix="pickgate-call")
        self._arrivals = Arrivals(request_wait_s)
        self._sealing = Sealing(Opener(deployment.control, deployment.now_ms))
        self.throttle = Throttle()
        """Who is slowed down for forged codes and wrong PINs."""
        # Watchers of the health service wait on the connection, not on a thread of the calls.
        self._health = health.HealthServicer(
            experimental_non_blocking=True,
            experimental_thread_pool=ThreadPoolExecutor(1, thread_name_prefix="pickgate-health"),
        )
        self._watches = StockWatches(deployment)
        self._watch_pool = ThreadPoolExecutor(
            WATCHERS_MAX + bounds.WATCH_THREADS_SPARE, thread_name_prefix="pickgate-watch"
        )
        self._ledger = LedgerAccess(ledger_url, deployment, heads_dir=ledger_heads)
        self._feed_pool = ThreadPoolExecutor(
            SUBSCRIBERS_MAX + bounds.WATCH_THREADS_SPARE, thread_name_prefix="pickgate-feed"
        )
        self._sweeper = Sweeper(deployment)
        self._sweeps = sweeps
        self._rotator = (
            Rotator(deployment.control, deployment.now_ms, key_rotation_s)
            if sweeps and key_rotation_s
            else None
        )
        self._turns = Turns(threads)
        self._names = ("", *(service.full_name for service in services.SERVICES))
        # Not shared: a second server on the port is a mistake to be told, not a second half of the traffic.
        self._server = grpc.server(
            self._pool,
            handlers=services.handlers(
                deployment,
                self._watches,
                self._watch_pool,
                self._turns,
                self._ledger,
                self._feed_pool,
                gate,
                issuing,
            ),
            interceptors=[self._arrivals, SealedHandlers(self._sealing), ThrottledHandlers(self.throttle)],
            options=(
                *_OPTIONS,
                *(() if certificates is None else _TLS_OPTIONS),
                ("grpc.so_reuseport", int(shares_ports)),
            ),
            maximum_concurrent_rpcs=calls_max,
        )
        found = lane_check.find() if lane else None
        self._lane = None
        if found is not None:
            methods = lane_methods.methods(deployment)
            self._lane = found(
                self._server,
                methods,
                deployment.connection.owners,
                admit=None if gate is None else gate.admit(list(methods), tls=certificates is not None),
                queue_calls_max=queue_calls_max,
                request_wait_s=request_wait_s,
                throttle=self.throttle,
                sealing=self._sealing,
            )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pickgate-health-look", daemon=True)
        self._told: str | None = None
        self.addresses: tuple[str, ...] = ()
        """Where it listens, with the real ports; set by `start`."""

    def start(self) -> Self:
        """Listen and answer. Raises SetupError when an address can't be had."""
        self.addresses = (
            *(self._bind(listen) for listen in self._listen),
            *(self._bind(listen, ask_clients=True) for listen in self._listen_mtls),
        )
        if self._gate is not None:
            if self._certificates is not None:
                self._certificates.when_taken(self._gate.forget)
            self._gate.start()
        if self._sightings is not None:
            self._sightings.start()
        self._tell_health(self._trouble())
        self._arrivals.start()
        self._server.start()
        if self._gate is None:
            _log.warning(
                "OPEN: callers are not known, and whoever reaches a listener may do everything; this is for development"
            )
        else:
            _log.info("callers are known by certificate or token, and do what their roles allow")
        if self._certificates is None:
            _log.info("no TLS: only this machine reaches the listeners")
        else:
            try:
                for address in self.addresses:
                    if not address.startswith("unix:"):
                        tls.check_version(address)
            except SetupError:
                self._server.stop(None)
                raise
            self._certificates.start()
            _log.info("TLS 1.3, and no other version, on the ports")
        if self._lane is not None:
            self._lane.start()
        if self._lane is None:
            _log.info("ordinary handlers serve all methods")
        else:
            _log.info("the hot lane serves %s", ", ".join(self._lane.names))
        self._watcher.start()
        if self._sweeps:
            self._sweeper.start()
        if self._rotator is not None:
            self._rotator.start()
        return self

    def stop(self, grace_s: float = bounds.GRACE_S_DEFAULT) -> None:
        """Take no new calls, let those in flight finish for at most `grace_s` seconds, then cut off the rest.

        Health says NOT_SERVING first, so that balancers send new calls elsewhere. Stopping twice changes nothing.
        """
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._arrivals.hurry()
        if self._lane is not None:
            self._lane.hurry()
        stopped = self._server.stop(grace_s)
        # Streams would last for all of the grace; their watchers are told, and may go elsewhere.
        self._watches.close()
        self._ledger.feeds.close()
        stopped.wait()
        self._watch_pool.shutdown(wait=True, cancel_futures=True)
        self._feed_pool.shutdown(wait=True, cancel_futures=True)
        self._sweeper.stop()
        if self._rotator is not None:
            self._rotator.stop()
        if self._certificates is not None:
            self._certificates.stop()
        if self._sightings is not None:
            self._sightings.stop()
        if self._gate is not None:
            self._gate.stop()
        if self._watcher.is_alive():
            self._watcher.join()
        # A call that was cut off may still wait for the store, whose timeout bounds it; then the deployment can close.
        if self._lane is not None:
            self._lane.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ledger.close()
        self._arrivals.stop()

    def statistics(self) -> dict[str, Any]:
        """Figures of the hot lane, see there, if it serves; of who is slowed down, "throttle", and who was refused, "refused"."""
        found = {} if self._lane is None else self._lane.statistics()
        found = {**found, "throttle": self.throttle.statistics(), "seals_refused": self._sealing.refused}
        return found if self._gate is None else {**found, "refused": dict(self._gate.refused)}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self, listen: Listen, *, ask_clients: bool = False) -> str:
        port = 0
        certificates = self._certificates if listen.port is not None else None
        if certificates is None and (trouble := listen.plain_trouble()):
            raise SetupError(trouble, field="listen")
        # gRPC takes a socket's path over from whoever listens there; only one that nobody answers on is left behind.
        if listen.port is not None or not answers(listen.address.removeprefix("unix:")):
            with contextlib.suppress(RuntimeError):
                if certificates is None:
                    port = self._server.add_insecure_port(listen.address)
                else:
                    credentials = certificates.credentials(ask_clients=ask_clients)
                    port = self._server.add_secure_port(listen.address, credentials)
        if not port:
            raise SetupError(
                f"can't listen on {listen.address}: another process listens there, or the address is not this "
                "machine's; stop the other one or choose another address",
                field="listen",
            )
        if listen.port is None:
            # Callers are not authenticated here: the socket is its owner's alone, whatever the umask.
            os.chmod(listen.address.removeprefix("unix:"), 0o600)
            return listen.address
        return f"{listen.address.rpartition(':')[0]}:{port}"

    def _trouble(self) -> str:
        """Why calls can't be answered now; '' when they can."""
        try:
            self._look()
        except PickgateError as error:
            return f"{error.slug}: {error.message}"
        except Exception as error:
            # A defect must not end the watching: health would say for ever what it said last.
            _log.exception("the look at the store failed")
            return f"{type(error).__name__}, see above"
        return ""

    def _tell_health(self, trouble: str) -> None:
        """Set the health of every service. Logged when it changes, not each second."""
        if trouble == self._told:
            return
        if trouble:
            _log.warning("not serving: %s", trouble)
        elif self._told:
            _log.warning("serving again")
        self._told = trouble
        status = (
            health_pb2.HealthCheckResponse.NOT_SERVING if trouble else health_pb2.HealthCheckResponse.SERVING
        )
        for name in self._names:
            # After enter_graceful_shutdown() the service ignores what is set here.
            self._health.set(name, status)

    def _watch(self) -> None:
        while not self._stopping.wait(bounds.HEALTH_LOOK_S):
            self._tell_health(self._trouble())


def tune_interpreter() -> None:
    """Tune this process' interpreter for a server that has just started; for good.

    What is there is left out of garbage collection: a full one walks every object there is, and with those of the modules that took 44 ms, in
    which no call was answered. Of what comes afterwards the youngest are looked at less often (bounds.GARBAGE_LOOK_OBJECTS). And a thread that
    waits for the interpreter's lock gets it sooner (bounds.SWITCH_S).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(bounds.GARBAGE_LOOK_OBJECTS, *gc.get_threshold()[1:])
    sys.setswitchinterval(bounds.SWITCH_S)


def answers(path: str) -> bool:
    """Whether somebody listens on the unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(path) == 0
