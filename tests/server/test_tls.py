"""Transport: TLS 1.3 only, terminals' certificates, files that change under a running server, addresses that need TLS."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from engine.errors import ConfigError, SetupError
from server import config, tls
from server.authority import Authority, TerminalId
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from server.tls import Certificates, Files
from tests.server.conftest import House, wait_until
from tests.server.test_cli import inside, pickgate, serve
from tests.server.trust import DOMAIN, LIFE, Trust

OLD, NEW = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust.make(tmp_path / "trust")


class Door:
    """A server with TLS: a port for all, and one where terminals show certificates."""

    def __init__(self, house: House, trust: Trust) -> None:
        self.trust = trust
        self.certificates = Certificates(trust.files, look_s=0.05)
        self.server = Server(
            house.deployment,
            [parse_listen("127.0.0.1:0")],
            threads=4,
            look=house.deployment.look,
            certificates=self.certificates,
            listen_mtls=[parse_listen("127.0.0.1:0")],
        )

    @property
    def open(self) -> str:
        return self.server.addresses[0]

    @property
    def mutual(self) -> str:
        return self.server.addresses[1]


@pytest.fixture
def door(house: House, trust: Trust) -> Iterator[Door]:
    made = Door(house, trust)
    with made.server:
        yield made


def answers(address: str, credentials: grpc.ChannelCredentials) -> bool:
    """Whether a new connection is let in."""
    channel = grpc.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])
    with channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        try:
            call(b"", timeout=5)
        except grpc.RpcError:
            return False
        return True


def shown(address: str) -> bytes:
    """The certificate that a listener shows, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as wrapped:
        certificate = wrapped.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


# --- versions -----------------------------------------------------------------------------------------------------------
def test_tls_1_2_is_refused_and_1_3_taken(door: Door) -> None:
    for address in (door.open, door.mutual):
        assert tls.offered(address, OLD) is None
        assert tls.offered(address, NEW) == "TLSv1.3"


def test_every_cipher_suite_of_tls_1_2_is_refused(door: Door) -> None:
    host, _, port = door.open.rpartition(":")
    names = [
        str(cipher["name"])
        for cipher in ssl.create_default_context().get_ciphers()
        if cipher["protocol"] != "TLSv1.3"
    ]
    assert len(names) > 10
    for name in names:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = OLD
        context.set_ciphers(f"{name}:@SECLEVEL=0")
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(plain),
        ):
            pass


def test_a_listener_that_takes_1_2_ends_the_start(house: House, trust: Trust) -> None:
    with pytest.raises(SetupError, match=r"takes TLSv1\.2"):
        tls.check_version("127.0.0.1:1", handshake=lambda address, version: "TLSv1.2")
    with pytest.raises(SetupError, match=r"does not take TLS 1\.3"):
        tls.check_version("127.0.0.1:1", handshake=lambda address, version: None)


def test_plain_text_gets_no_answer(door: Door) -> None:
    with Client(door.open, tries=1, timeout_s=5) as client, pytest.raises(CallFailed) as caught:
        client.healthy()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


# --- certificates of terminals ---------------------------------------------------------------------------------------------
def test_terminals_show_a_certificate_of_the_ca(door: Door, tmp_path: Path) -> None:
    trust, stranger = door.trust, Trust.make(tmp_path / "stranger")
    assert answers(door.mutual, trust.terminal(7, 2001, 3))
    assert not answers(door.mutual, trust.credentials())
    assert not answers(door.mutual, trust.terminal(7, 2001, 3, ended=True))
    # Its CA has the same name and another key.
    foreign = Authority.make("test CA").terminal(TerminalId(7, 2001, 3), DOMAIN, life=LIFE)
    assert not answers(door.mutual, trust.credentials(foreign))
    # A server's certificate is none of a client's, whoever signed it.
    assert not answers(door.mutual, trust.credentials(trust.authority.server(["localhost"], life=LIFE)))
    assert answers(door.open, trust.credentials())
    # And the client finds out a server that is not ours.
    assert not answers(door.open, stranger.credentials())


# --- files that change -------------------------------------------------------------------------------------------------------
def test_new_files_are_taken_without_a_restart_and_no_call_is_lost(door: Door) -> None:
    before = shown(door.open)
    failed: list[Exception] = []
    rounds, stop = [0], threading.Event()

    def go_on() -> None:
        with Client(door.open, credentials=door.trust.credentials(), tries=1) as client:
            while not stop.is_set():
                try:
                    client.healthy()
                    rounds[0] += 1
                except Exception as error:
                    failed.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        wait_until(lambda: rounds[0] > 3, "calls are answered")
        for _ in range(5):
            revision = door.certificates.revision
            door.trust.replace_server()
            wait_until(lambda was=revision: door.certificates.revision > was, "the new files are taken")  # type: ignore[misc]
            assert answers(door.open, door.trust.credentials())
        after = rounds[0]
        wait_until(lambda: rounds[0] > after, "calls are answered still")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert shown(door.open) != before


def test_a_ca_that_is_added_or_taken_out_counts_for_the_next_connection(door: Door) -> None:
    second = Authority.make("second CA")
    late = door.trust.credentials(second.terminal(TerminalId(7, 2001, 4), DOMAIN, life=LIFE))
    early = door.trust.terminal(7, 2001, 3)
    assert not answers(door.mutual, late)
    path = door.trust.folder / "ca.pem"
    first_pem = path.read_bytes()

    def replace(content: bytes) -> None:
        revision = door.certificates.revision
        door.trust.write("ca", content)
        wait_until(lambda: door.certificates.revision > revision, "the new bundle is taken")

    replace(first_pem + second.pem)
    assert answers(door.mutual, late)
    assert answers(door.mutual, early)
    replace(second.pem)
    assert answers(door.mutual, late)
    assert not answers(door.mutual, early)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("server", b"garbage"),
        ("server-key", b""),
        ("ca", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
)
def test_a_bad_file_leaves_the_last_good_set_and_says_so_once(
    door: Door, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    before, terminal = shown(door.open), door.trust.terminal(7, 2001, 3)
    kept = (door.trust.folder / f"{name}.pem").read_bytes()
    door.trust.write(name, content)

    def refusals() -> list[str]:
        return [one.getMessage() for one in caplog.records if "NEW CERTIFICATES REFUSED" in one.getMessage()]

    wait_until(refusals, "the log says so")
    assert answers(door.mutual, terminal)
    assert shown(door.open) == before
    # Looked at many times since, said once.
    looks = threading.Event()
    for _ in range(10):
        door.certificates.refresh()
        looks.wait(0.01)
    (said,) = refusals()
    assert f"{name}.pem" in said
    assert "last good set stays" in said
    door.trust.write(name, kept)
    revision = door.certificates.revision
    wait_until(lambda: door.certificates.revision > revision or shown(door.open) == before, "it is mended")
    assert answers(door.mutual, terminal)


def test_a_missing_file_leaves_the_last_good_set(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    (door.trust.folder / "server.pem").unlink()
    wait_until(lambda: "NEW CERTIFICATES REFUSED" in caplog.text, "the log says so")
    assert answers(door.open, door.trust.credentials())


# --- what is no set of certificates -------------------------------------------------------------------------------------------
def rsa_pair() -> tuple[bytes, bytes]:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
        .sign(key, SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def spoil(trust: Trust, what: str) -> None:
    if what == "rsa":
        certificate, key = rsa_pair()
        trust.write("server", certificate)
        trust.write("server-key", key)
    elif what == "foreign key":
        trust.write("server-key", trust.authority.server(["x"], life=LIFE).key)
    elif what == "ended":
        pair = trust.authority.server(["x"], life=LIFE, now=datetime.now(UTC) - 2 * LIFE)
        trust.write("server", pair.certificate)
        trust.write("server-key", pair.key)
    elif what == "no chain":
        trust.write("server", (trust.folder / "server.pem").read_bytes() + Authority.make("other").pem)
    elif what == "no ca":
        trust.write("ca", (trust.folder / "server.pem").read_bytes())
    else:
        trust.write("ca", b"x" * (1 << 21))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("rsa", "no ECDSA key"),
        ("foreign key", "is not the one of the certificate"),
        ("ended", "is good from"),
        ("no chain", "is no chain"),
        ("no ca", "is not the certificate of a CA"),
        ("long", "is longer than"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(trust: Trust, what: str, says: str) -> None:
    tls.read(trust.files)
    spoil(trust, what)
    with pytest.raises(SetupError, match=says) as caught:
        Certificates(trust.files)
    assert str(trust.folder) in caught.value.message
    assert "BEGIN" not in caught.value.message


# --- addresses -----------------------------------------------------------------------------------------------------------------
def test_others_are_let_in_with_tls_only(house: House, trust: Trust) -> None:
    plain = Server(house.deployment, [config.Listen("0.0.0.0:0", 0)], look=lambda: None)
    with pytest.raises(SetupError, match="there is no TLS"):
        plain.start()
    plain.stop(0)
    files = trust.files
    given = {"listen": ["0.0.0.0:0"], "tls_cert_file": files.certificate, "tls_key_file": files.key}
    with pytest.raises(ConfigError, match="nobody could be known"):
        config.load(given, {})
    given |= {"listen_mtls": ["127.0.0.1:0"], "tls_ca_file": files.roots}
    settings = config.load(given, {})
    with Server(
        house.deployment, settings.listen, look=lambda: None, certificates=Certificates(files)
    ) as server:
        (address,) = server.addresses
        assert tls.offered(address, OLD) is None
        assert answers(f"127.0.0.1:{address.rpartition(':')[2]}", trust.credentials())


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"tls_cert_file": "a"}, "tls_cert_file"),
        ({"tls_key_file": "a"}, "tls_key_file"),
        ({"tls_ca_file": "a"}, "tls_ca_file"),
        ({"listen_mtls": ["127.0.0.1:0"]}, "listen_mtls"),
        ({"listen_mtls": ["127.0.0.1:0"], "tls_cert_file": "a", "tls_key_file": "b"}, "listen_mtls"),
        (
            {"listen_mtls": ["unix:/x"], "tls_cert_file": "a", "tls_key_file": "b", "tls_ca_file": "c"},
            "listen_mtls",
        ),
        ({"target_cert_file": "a"}, "target_cert_file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(given, {})
    assert caught.value.field == key


# --- the command ------------------------------------------------------------------------------------------------------------------
def test_certs_dev_makes_what_serve_and_terminals_need_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    done = inside("certs", "dev", str(folder), "--terminal", "7/2001/3", "--json")
    assert done.returncode == 0, done.stderr
    made = {Path(path).name for path in json.loads(done.stdout)["made"]}
    assert {"ca.pem", "server.pem", "server-key.pem", "terminal-7-2001-3.pem"} < made
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if "key" in path.name else 0o644)
    tls.read(Files(folder / "server.pem", folder / "server-key.pem", folder / "ca.pem"))
    leaf = x509.load_pem_x509_certificate((folder / "terminal-7-2001-3.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://pickgate/mall/7/store/2001/terminal/3"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert inside("certs", "dev", str(folder), "--terminal", "7/2001/4").returncode == 0
    assert inside("certs", "dev", str(folder), "--terminal", "7/2001/3").returncode == 2
    assert inside("certs", "dev", str(folder), "--terminal", "7/2001").returncode == 2
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "terminal-7-2001-4.pem").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_server_process_serves_tls_1_3_only(tmp_path: Path, workers: str) -> None:
    folder = tmp_path / "certs"
    assert inside("certs", "dev", str(folder)).returncode == 0
    with ExitStack() as stack:
        served = serve(
            stack,
            tmp_path / "data",
            tmp_path,
            *("--durability", "memory", "--workers", workers),
            *(
                "--tls-cert-file",
                str(folder / "server.pem"),
                "--tls-key-file",
                str(folder / "server-key.pem"),
            ),
            *("--tls-ca-file", str(folder / "ca.pem"), "--listen-mtls", "127.0.0.1:0"),
        )
        assert tls.offered(served.address, OLD) is None
        assert tls.offered(served.address, NEW) == "TLSv1.3"
        served.settings = {"PICKGATE_TARGET_CA_FILE": str(folder / "ca.pem")}
        assert "serving at" in served.inside("doctor").stdout
        log = (tmp_path / "server.log").read_text()
        assert "TLS 1.3, and no other version" in log


def test_serve_says_that_there_is_no_tls_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    done = pickgate("serve", "--listen", "0.0.0.0:0", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no TLS" in done.stderr
    bad = tmp_path / "bad.pem"
    bad.write_text("garbage")
    given = [
        *("--tls-cert-file", str(bad), "--tls-key-file", str(bad)),
        *("--tls-ca-file", str(bad), "--listen-mtls", "127.0.0.1:0"),
    ]
    done = pickgate("serve", *given, "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no certificate" in done.stderr
    assert not (tmp_path / "data").exists()
    assert os.listdir(tmp_path) == ["bad.pem"]


def test_the_end_of_a_servers_certificate_is_warned_of(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    Certificates(trust.files)
    assert "ends at" in caplog.text
    caplog.clear()
    pair = trust.authority.server(["localhost"], life=timedelta(days=60))
    trust.write("server-key", pair.key)
    trust.write("server", pair.certificate)
    Certificates(trust.files)
    assert "ends at" not in caplog.text
