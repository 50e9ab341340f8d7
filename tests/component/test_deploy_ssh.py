"""The way to a host, against a real sshd."""

import getpass
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.deploy import hostkey, ssh, sshconfig
from tests.component.sshd import KEY_TYPES, Sshd

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB7h1hYvP4dZ7Y0pQDmkzC9QNpNQm6PZ6C9cO0o7p3M"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("ssh") / "sshd") as server:
        yield server


@pytest.fixture
def connection(sshd: Sshd) -> Iterator[ssh.Connection]:
    with ssh.connect(sshd.login()) as opened:
        yield opened


def fingerprint(sshd: Sshd, kind: str) -> str:
    command = ["ssh-keygen", "-l", "-f", str(sshd.directory / f"host_{kind}")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


# Who is the host?


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_server_is_asked_for_the_pinned_type(sshd: Sshd, kind: str) -> None:
    pins = (hostkey.from_public_key(sshd.host_keys[kind]),)
    with ssh.connect(sshd.login(pins=pins)) as connection:
        assert connection.peer == "127.0.0.1"


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_fingerprint_of_any_type_is_found(sshd: Sshd, kind: str) -> None:
    pins = (hostkey.from_fingerprint(fingerprint(sshd, kind)),)
    with ssh.connect(sshd.login(pins=pins)):
        pass


def test_wrong_host_key_is_refused_before_any_login(sshd: Sshd) -> None:
    pins = (hostkey.from_public_key(OTHER_KEY),)
    with pytest.raises(errors.HostKeyMismatch) as caught:
        ssh.connect(sshd.login(pins=pins, key_file=Path("/nonexistent")))
    assert f"127.0.0.1:{sshd.port} shows ssh-ed25519 {fingerprint(sshd, 'ed25519')}" in caught.value.message
    assert pins[0].fingerprint in caught.value.message
    assert "ssh-keygen -l" in caught.value.hint


def test_wrong_fingerprint_names_every_key_that_was_shown(sshd: Sshd) -> None:
    with pytest.raises(errors.HostKeyMismatch) as caught:
        ssh.connect(sshd.login(pins=(hostkey.Pin(hostkey.from_public_key(OTHER_KEY).fingerprint),)))
    for kind in KEY_TYPES:
        assert fingerprint(sshd, kind) in caught.value.message


def test_host_without_a_key_of_the_pinned_type(tmp_path: Path) -> None:
    pins = (hostkey.from_public_key(OTHER_KEY),)
    with (
        Sshd(tmp_path / "sshd", key_types=("ecdsa",)) as server,
        pytest.raises(errors.HostKeyMismatch, match="no key of the pinned type"),
    ):
        ssh.connect(server.login(pins=pins))


def test_nothing_is_trusted_unseen(sshd: Sshd) -> None:
    with pytest.raises(errors.DeployError, match="No SSH host key is known"):
        ssh.connect(sshd.login(pins=()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no type of SSH host key"),
        ("ssh-dss AAAA", "no type of SSH host key"),
        ("ssh-ed25519", "damaged"),
        ("ssh-ed25519 !!!!", "damaged"),
        ("ssh-rsa " + OTHER_KEY.split()[1], "damaged"),
    ],
)
def test_bad_public_key(text: str, words: str) -> None:
    with pytest.raises(errors.DeployError, match=words):
        hostkey.from_public_key(text)


@pytest.mark.parametrize("text", ["", "SHA256:short", "MD5:aa:bb", "aa:bb:cc"])
def test_bad_fingerprint(text: str) -> None:
    with pytest.raises(errors.DeployError, match="no SHA256 fingerprint"):
        hostkey.from_fingerprint(text)


# Who are we?


def test_wrong_user_key(sshd: Sshd) -> None:
    stranger = sshd.keygen("stranger", "ed25519")
    with pytest.raises(errors.DeployError, match=f"does not let .* in with the key {stranger}") as caught:
        ssh.connect(sshd.login(key_file=stranger))
    assert "authorized_keys" in caught.value.hint


def test_wrong_password_is_not_told_to_anybody(sshd: Sshd) -> None:
    login = sshd.login(key_file=None, password="hunter2-secret")
    with pytest.raises(errors.DeployError, match=r"does not let .* in with .*the password") as caught:
        ssh.connect(login)
    assert "hunter2" not in f"{caught.value} {login!r}"


def test_encrypted_key(sshd: Sshd) -> None:
    with pytest.raises(errors.DeployError, match=r"encrypted.*ssh-add"):
        ssh.connect(sshd.login(key_file=sshd.keygen("encrypted", "ed25519", passphrase="secret")))


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_unusable_key(sshd: Sshd, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.DeployError, match=f"SSH key {path} cannot be used"):
        ssh.connect(sshd.login(key_file=path))


# Is anybody there?


def test_nothing_listens(sshd: Sshd) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(errors.DeployError, match=r"Nothing listens for SSH at 127\.0\.0\.1:"):
            ssh.connect(sshd.login(port=bound.getsockname()[1]))


def test_no_such_name(sshd: Sshd) -> None:
    with pytest.raises(errors.DeployError, match=r"There is no address for host\.invalid:"):
        ssh.connect(sshd.login(address="host.invalid"))


def test_server_that_says_nothing(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(
            errors.DeployError, match=r"127.0.0.1:\d+ did not answer|connection to 127.0.0.1:\d+ failed"
        ):
            ssh.connect(sshd.login(port=silent.getsockname()[1], timeout=0.5))
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "words", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200, b"SSH-2.0-nonsense\r\n" + b"\xff" * 64, b""]
)
def test_server_that_is_no_sshd(sshd: Sshd, words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(errors.DeployError, match=r"connection to 127.0.0.1:\d+ failed"):
            ssh.connect(sshd.login(port=server.getsockname()[1], timeout=5))
        thread.join()


# Commands.


def test_words_arrive_as_they_are(connection: ssh.Connection) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "'", '"', ";reboot", "é"]
    assert connection.run(words) == "a b|$HOME|'|\"|;reboot|é|"


def test_status_and_both_outputs(connection: ssh.Connection) -> None:
    output = connection.call(["sh", "-c", "cat; echo problem >&2; exit 3"], b"input")
    assert output == ssh.Output(3, "input", "problem\n")


def test_failed_command_is_an_error_with_its_last_words(connection: ssh.Connection) -> None:
    with pytest.raises(errors.DeployError, match=rf"sh failed on {connection.where} \(3\): the reason"):
        connection.run(["sh", "-c", "echo noise >&2; echo the reason >&2; exit 3"])


def test_missing_command(connection: ssh.Connection) -> None:
    assert connection.call(["no-such-command"]).status == 127


def test_command_that_ignores_its_input(connection: ssh.Connection) -> None:
    assert connection.call(["true"], b"x" * 5_000_000).status == 0


def test_command_that_does_not_end(connection: ssh.Connection) -> None:
    with pytest.raises(errors.DeployError, match=r"did not answer over SSH in 0\.3 seconds"):
        connection.run(["sleep", "3"], timeout=0.3)
    assert connection.run(["echo", "next"]) == "next\n"


def test_command_that_prints_without_end(connection: ssh.Connection) -> None:
    with pytest.raises(errors.DeployError, match="prints without end"):
        connection.run(["yes"])


def test_closed_connection(connection: ssh.Connection) -> None:
    connection.close()
    with pytest.raises(errors.DeployError, match=f"connection to {connection.where} failed"):
        connection.run(["true"])


# Another way there, and strangers.


def test_through_a_jump_host(sshd: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "jump", key_types=("ed25519",)) as jump:
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{jump.port} {jump.host_keys['ed25519']}\n")
        config = tmp_path / "config"
        config.write_text(
            f"Host jump\n HostName 127.0.0.1\n Port {jump.port}\n IdentityFile {jump.client_key}\n"
            f" UserKnownHostsFile {known}\n GlobalKnownHostsFile /dev/null\n"
            f"Host 127.0.0.1\n ProxyJump jump\n"
        )
        place = sshconfig.look_up("127.0.0.1", sshd.port, getpass.getuser(), config)
        assert place.proxy
        with ssh.connect(sshd.login(proxy=place.proxy)) as connection:
            assert connection.run(["echo", "there"]) == "there\n"
            assert connection.peer == "127.0.0.1"


def test_jump_host_that_is_not_there(sshd: Sshd) -> None:
    with pytest.raises(errors.DeployError, match=r"127\.0\.0\.1"):
        ssh.connect(sshd.login(proxy=("sh", "-c", "exit 255"), timeout=5.0))


def test_a_key_that_nobody_knows_is_believed_only_when_that_is_asked_for(sshd: Sshd) -> None:
    with pytest.raises(errors.DeployError, match="No SSH host key is known") as caught:
        ssh.connect(sshd.login(pins=()))
    assert "--trust-new-host-key" in caught.value.hint
    with ssh.connect(sshd.login(pins=(), trust_new=True)) as connection:
        assert connection.first_met
        assert connection.fingerprint == fingerprint(sshd, connection.host_key.split()[0].removeprefix("ssh-"))
