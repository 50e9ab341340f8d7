"""The netcat transport between a real agent and a controller: who gets in, who does not, and what a cut costs."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from blockferry import errors
from blockferry.deploy import pki
from blockferry.transport import grpc_agent
from blockferry.transport import netcat as transport
from blockferry.transport.disk import Disk, Target
from blockferry.transport.grpc_agent import Agent, Endpoint
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry_agent import door, frames, netcat
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.nbd import Address
from blockferry_agent.units import MiB
from blockferry_proto import agent_pb2, agent_pb2_grpc
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.lab import processes

SIZE = 8 * MiB
PATIENCE = 10.0


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def disk(host: Host) -> Iterator[Address]:
    image = nbd_servers.qcow2(host.directory / "disk.qcow2", SIZE)
    nbd_servers.write(image, f"write -P 0x41 0 {SIZE - 2 * MiB}")
    with nbd_servers.qemu_nbd(image, host.directory) as served:
        yield served


@pytest.fixture
def ticket(host: Host, disk: Address) -> agent_pb2.Ticket:
    return host.ticket(disk, SIZE)


def free_port() -> int:
    """A port where nobody listens, and that the kernel gives to nobody who connects somewhere."""
    while True:
        port = random.randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture(scope="module")
def ports() -> list[int]:
    first = free_port()
    return [first, first + 19]


@pytest.fixture(scope="module")
def address(host: Host, ports: list[int]) -> Iterator[str]:
    with host.serving(socket_ports=ports, clear_text=True) as listening:
        yield listening


@pytest.fixture
def stub(host: Host, address: str) -> Iterator[agent_pb2_grpc.AgentStub]:
    with host.client(address) as client:
        yield client


def opened(stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, tls: bool = False) -> agent_pb2.OpenSocketReply:
    return stub.OpenSocket(agent_pb2.OpenSocketRequest(ticket=ticket, clear_text=not tls), timeout=5)


def knock(reply: agent_pb2.OpenSocketReply) -> socket.socket:
    return socket.create_connection(("127.0.0.1", reply.port), timeout=PATIENCE)


def receive(client: socket.socket, length: int) -> bytes:
    """The next bytes; fewer when the agent hangs up before."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < length and (more := client.recv(length - len(data))):
            data += more
    return data


def is_let_in(client: socket.socket, token: bytes) -> bool:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(token)
    return receive(client, len(frames.GREETING)) == frames.GREETING


def answer(client: socket.socket, message: agent_pb2.ReadBlocksRequest) -> list[Block | Summary]:
    """All that comes to a request; raises the agent's error."""

    def exactly(length: int) -> bytes:
        data = receive(client, length)
        assert len(data) == length, "the agent hung up"
        return data

    client.sendall(frames.of_request(message))
    reader = frames.Reader(exactly, message.window_bytes, "the agent")
    received: list[Block | Summary] = []
    while not received or not isinstance(received[-1], Summary):
        received.append(reader.next())
    return received


WHOLE = agent_pb2.ReadBlocksRequest(window_bytes=MiB)
"""The whole disk of the socket's ticket."""


def wait_until(ready: Callable[[], bool]) -> None:
    processes.wait_for("it", ready, timeout=10)


def nobody_listens(reply: agent_pb2.OpenSocketReply) -> bool:
    try:
        knock(reply).close()
    except ConnectionRefusedError:
        return True
    return False


def is_forgotten(reply: agent_pb2.OpenSocketReply) -> bool:
    """Nothing of the agent is left that belonged to a socket."""
    return f"netcat-{reply.port}" not in [thread.name for thread in threading.enumerate()]


# Who gets in


def test_the_token_lets_in_and_requests_are_answered_one_after_another(
    stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket
) -> None:
    reply = opened(stub, ticket)
    assert (len(reply.token), reply.wait_seconds) == (frames.TOKEN_LENGTH, netcat.WAIT)
    with knock(reply) as client:
        assert is_let_in(client, reply.token)
        first, second = answer(client, WHOLE), answer(client, WHOLE)
        assert first[:-1] == second[:-1]
        assert sum(block.length for block in first[:-1] if isinstance(block, Block)) == SIZE
    wait_until(lambda: is_forgotten(reply))


def test_a_wrong_token_gets_nothing_and_costs_nothing(stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket) -> None:
    reply = opened(stub, ticket)
    with knock(reply) as stranger:
        assert not is_let_in(stranger, bytes(32))
        assert receive(stranger, 1) == b""
    with knock(reply) as stranger:
        stranger.sendall(reply.token[:31])
    with knock(reply) as client:
        assert is_let_in(client, reply.token)


def test_a_token_in_single_bytes_is_a_token(stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket) -> None:
    reply = opened(stub, ticket)
    with knock(reply) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in reply.token[:-1]:
            client.sendall(bytes([byte]))
        assert is_let_in(client, reply.token[-1:])


def test_a_token_is_good_for_one_client(stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket) -> None:
    reply = opened(stub, ticket)
    with knock(reply) as second, knock(reply) as client:
        assert is_let_in(client, reply.token)
        assert nobody_listens(reply)
        assert not is_let_in(second, reply.token)
        other = opened(stub, ticket)
        with knock(other) as replayed:
            assert not is_let_in(replayed, reply.token)
        assert answer(client, WHOLE)


def test_who_says_nothing_is_sent_away(
    stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "TOKEN_PATIENCE", 0.1)
    reply = opened(stub, ticket)
    with knock(reply) as stranger:
        assert receive(stranger, 1) == b""
    with knock(reply) as client:
        assert is_let_in(client, reply.token)


@pytest.mark.parametrize("tls", [False, True])
def test_a_port_scan_is_in_nobodys_way(
    host: Host, stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, tls: bool
) -> None:
    reply = opened(stub, ticket, tls)
    with contextlib.ExitStack() as stack:
        scanners = [stack.enter_context(knock(reply)) for _ in range(3 * door.MAX_KNOCKING)]
        for scanner in scanners[::2]:
            with contextlib.suppress(ConnectionError):
                scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        assert receive(scanners[1], 1) == b"", "the oldest have to go when there are too many"
        client = stack.enter_context(knock(reply))
        if tls:
            client = stack.enter_context(wrapped(host, client, host.pki.controller()))
        assert is_let_in(client, reply.token)
        assert time.monotonic() - began < door.TOKEN_PATIENCE / 2


def wrapped(host: Host, client: socket.socket, identity: pki.Identity | None) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=host.pki.trusted.decode())
    if identity is not None:
        pem = host.directory / "client.pem"
        pem.write_bytes(identity.key + identity.certificate)
        context.load_cert_chain(pem)
    return context.wrap_socket(client, server_hostname="127.0.0.1")


def test_only_a_controllers_certificate_is_accepted(
    host: Host,
    stub: agent_pb2_grpc.AgentStub,
    ticket: agent_pb2.Ticket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of these knows the token."""
    monkeypatch.setattr(door, "TOKEN_PATIENCE", 1)  # of clear text, TLS may wait for more
    reply = opened(stub, ticket, tls=True)
    strangers = [
        None,
        pki.Authority.open(tmp_path / "state").controller(),
        host.pki.agent("host-2", "127.0.0.2"),
        host.pki._issue(pki.AGENT_ROLE, ExtendedKeyUsageOID.CLIENT_AUTH, []),
    ]
    for identity in strangers:
        with knock(reply) as plain, contextlib.suppress(ssl.SSLError):
            assert not is_let_in(wrapped(host, plain, identity), reply.token)
    with knock(reply) as clear:
        assert not is_let_in(clear, reply.token)
    with knock(reply) as plain, wrapped(host, plain, host.pki.controller()) as client:
        assert client.version() == "TLSv1.3"
        assert is_let_in(client, reply.token)


def test_the_port_closes_when_nobody_comes(
    stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netcat, "WAIT", 1)
    reply = opened(stub, ticket)
    with knock(reply) as waiting:
        assert receive(waiting, 1) == b""
    assert nobody_listens(reply)


def refusal(call: Callable[[], object]) -> agent_errors.Error:
    with pytest.raises(agent_errors.Error) as caught:
        call()
    return caught.value


def test_what_the_configuration_does_not_allow(host: Host, disk: Address, ports: list[int]) -> None:
    target = target_of(host, disk)
    with host.serving(socket_ports=ports) as listening, agent_at(host, listening) as agent:
        error = refusal(lambda: agent.open_socket(target, clear_text=True))
        assert type(error) is agent_errors.InvalidRequest
        assert "without TLS" in error.message
        reply = agent.open_socket(target, clear_text=False)
    assert is_forgotten(reply)
    with host.serving() as listening, agent_at(host, listening) as agent:
        error = refusal(lambda: agent.open_socket(target, clear_text=False))
        assert type(error) is agent_errors.InvalidRequest
        assert "names no ports" in error.message


def test_more_sockets_than_allowed(host: Host, disk: Address, ports: list[int]) -> None:
    target = target_of(host, disk)
    with host.serving(socket_ports=ports, max_reads=2) as listening, agent_at(host, listening) as agent:
        assert agent.open_socket(target, False).port != agent.open_socket(target, False).port
        error = refusal(lambda: agent.open_socket(target, False))
        assert type(error) is agent_errors.Busy
        assert "2 sockets" in error.message
    port = free_port()
    with host.serving(socket_ports=[port, port]) as listening, agent_at(host, listening) as agent:
        assert agent.open_socket(target, False).port == port
        error = refusal(lambda: agent.open_socket(target, False))
        assert type(error) is agent_errors.Busy
        assert "are taken" in error.message


def test_a_ticket_that_nobody_knows_opens_no_port(host: Host, address: str, disk: Address) -> None:
    target = target_of(host, disk)._replace(ticket_id="00000000-0000-4000-8000-00000000dead")
    with agent_at(host, address) as agent:
        assert type(refusal(lambda: agent.open_socket(target, False))) is agent_errors.TicketNotFound


# What a client may do, and what becomes of him


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (frames.LENGTH.pack(frames.MAX_REQUEST + 1), "too long"),
        (frames.LENGTH.pack(4) + b"\xff" * 4, "is no request"),
        (frames.of_request(agent_pb2.ReadBlocksRequest(window_bytes=1)), "window_bytes must be"),
    ],
)
def test_requests_that_are_none(
    stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, sent: bytes, sentence: str
) -> None:
    reply = opened(stub, ticket)
    with knock(reply) as client:
        assert is_let_in(client, reply.token)
        client.sendall(sent)
        with pytest.raises(agent_errors.InvalidRequest, match=sentence):
            frames.Reader(lambda length: receive(client, length), MiB, "the agent").next()
        assert receive(client, 1) == b""


def test_a_socket_is_for_its_tickets_disk_only(
    host: Host, stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket, disk: Address
) -> None:
    reply = opened(stub, ticket)
    with knock(reply) as client:
        assert is_let_in(client, reply.token)
        with pytest.raises(agent_errors.InvalidRequest, match="names no ticket"):
            answer(client, agent_pb2.ReadBlocksRequest(ticket=host.ticket(disk, SIZE), window_bytes=MiB))


def test_an_agent_that_stops_closes_ports_and_hangs_up(host: Host, disk: Address, ports: list[int]) -> None:
    ticket = host.ticket(disk, SIZE)
    with contextlib.ExitStack() as stack:
        with host.serving(socket_ports=ports, clear_text=True) as listening, host.client(listening) as stub:
            waiting, served = opened(stub, ticket), opened(stub, ticket)
            knocking = stack.enter_context(knock(waiting))
            client = stack.enter_context(knock(served))
            assert is_let_in(client, served.token)
            began = time.monotonic()
        assert time.monotonic() - began < 8
        assert receive(knocking, 1) == b""
        assert receive(client, 1) == b""
    assert nobody_listens(waiting)
    assert is_forgotten(waiting)
    assert is_forgotten(served)


def test_a_client_that_takes_nothing_is_given_up(
    host: Host, stub: agent_pb2_grpc.AgentStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netcat, "PATIENCE", 0.5)
    with nbd_servers.nbdkit(host.directory, "pattern", "256M") as served:
        ticket = host.ticket(served, 256 * MiB)
        reply = opened(stub, ticket)
        with knock(reply) as client:
            assert is_let_in(client, reply.token)
            client.sendall(frames.of_request(WHOLE))
            wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 1)
            wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 0)
    wait_until(lambda: is_forgotten(reply))


def test_a_client_that_goes_away_frees_the_disk(stub: agent_pb2_grpc.AgentStub, host: Host) -> None:
    with nbd_servers.nbdkit(host.directory, "pattern", "256M") as served:
        ticket = host.ticket(served, 256 * MiB)
        reply = opened(stub, ticket)
        with knock(reply) as client:
            assert is_let_in(client, reply.token)
            client.sendall(frames.of_request(WHOLE))
            assert len(receive(client, MiB)) == MiB
        wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 0)
    wait_until(lambda: is_forgotten(reply))


def test_a_client_that_goes_away_is_missed_while_there_is_nothing_to_send(
    stub: agent_pb2_grpc.AgentStub, ticket: agent_pb2.Ticket
) -> None:
    """At a byte per second, the first block takes twelve days."""
    reply = opened(stub, ticket)
    with knock(reply) as client:
        assert is_let_in(client, reply.token)
        client.sendall(frames.of_request(agent_pb2.ReadBlocksRequest(window_bytes=MiB, bytes_per_second=1)))
        wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 1)
    wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 0)
    wait_until(lambda: is_forgotten(reply))


# The controller's side


def target_of(host: Host, served: Address, size: int = SIZE) -> Target:
    ticket = host.ticket(served, size)
    return Target("host1", "127.0.0.1", ticket.transfer_id, ticket.ticket_id, "", None, size)


def credentials(host: Host) -> Credentials:
    own = host.pki.controller()
    return Credentials(host.pki.trusted, own.certificate, own.key)


def agent_at(host: Host, listening: str) -> contextlib.closing[Agent]:
    name, port = listening.rsplit(":", 1)
    return contextlib.closing(Agent(Endpoint(name, int(port), name), credentials(host)))


def netcat_to(host: Host, listening: str, reached_at: str = "127.0.0.1", clear_text: bool = True) -> NetcatTransport:
    """reached_at: where the sockets are looked for."""
    own = credentials(host)
    name, port = listening.rsplit(":", 1)
    endpoint = Endpoint(name, int(port), name)
    return NetcatTransport(
        lambda _: Agent(endpoint, own), lambda _: endpoint._replace(address=reached_at), own, clear_text
    )


def read(opened_disk: Disk, size: int = SIZE) -> list[Block]:
    with contextlib.closing(opened_disk.read(ReadRequest(0, size, incremental=False, window=MiB))) as reading:
        return list(reading)


@pytest.mark.parametrize("clear_text", [True, False])
def test_clear_text_is_told_and_bytes_are_counted(host: Host, address: str, disk: Address, clear_text: bool) -> None:
    opened_disk = netcat_to(host, address, clear_text=clear_text).open(target_of(host, disk))
    assert opened_disk.remark == ("clear text" if clear_text else "")
    with contextlib.closing(opened_disk):
        reading = opened_disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB))
        with contextlib.closing(reading):
            blocks = list(reading)
        summary = len(frames.of_summary(reading.summary))
        assert reading.wire_bytes == 6 * MiB + len(blocks) * frames.HEADER.size + summary


@contextlib.contextmanager
def cut(port: int, after: int) -> Iterator[None]:
    """Carry what comes to 127.0.0.2 on to the agent, and hang up after so many bytes of the way back."""

    def pump(source: socket.socket, sink: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left and (data := source.recv(min(left, 65536))):
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def carry() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            listener.close()
            with client, socket.create_connection(("127.0.0.1", port)) as agent:
                there = threading.Thread(target=pump, args=(client, agent, 2**62))
                there.start()
                pump(agent, client, after)
                there.join()

    with socket.create_server(("127.0.0.2", port)) as listener:
        thread = threading.Thread(target=carry)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def boundaries() -> list[int]:
    """Bytes from the agent before each header, each payload and the end, for the disk of these tests."""
    greeting, head = len(frames.GREETING), frames.HEADER.size
    places = [0, greeting - 1, greeting]
    for _ in range(6):
        places += [places[-1] + head, places[-1] + head + MiB // 2, places[-1] + head + MiB]
    return [*places, places[-1] + head, places[-1] + 2 * head]


@pytest.mark.parametrize("after", boundaries())
def test_a_cut_costs_the_block_in_flight_and_no_more(host: Host, disk: Address, after: int) -> None:
    port = free_port()
    with host.serving(socket_ports=[port, port], clear_text=True) as listening, cut(port, after):
        through_proxy = netcat_to(host, listening, reached_at="127.0.0.2")
        if after < len(frames.GREETING):
            with pytest.raises(errors.AgentUnreachable, match=rf"TCP port {port}.*cannot be used"):
                through_proxy.open(target_of(host, disk))
            return
        received = []
        with (
            contextlib.closing(through_proxy.open(target_of(host, disk))) as opened_disk,
            contextlib.closing(opened_disk.read(ReadRequest(0, SIZE, False, MiB))) as reading,
            pytest.raises(
                errors.TransportError, match=r"broke: (the other side hung up|Connection reset)|cannot be used"
            ),
        ):
            for block in reading:
                received.append(block)
        whole_blocks = (after - len(frames.GREETING)) // (frames.HEADER.size + MiB)
        assert sum(block.length == MiB for block in received) == whole_blocks


def test_a_port_that_cannot_be_reached(host: Host, address: str, disk: Address) -> None:
    with pytest.raises(errors.AgentUnreachable, match=r"TCP port \d+.*cannot be used from here.*netcat_ports"):
        netcat_to(host, address, reached_at="127.0.0.3").open(target_of(host, disk))


def test_something_else_that_answers_at_the_port(host: Host, disk: Address) -> None:
    port = free_port()

    def answer_http() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with (
        host.serving(socket_ports=[port, port], clear_text=True) as listening,
        socket.create_server(("127.0.0.2", port)) as listener,
    ):
        thread = threading.Thread(target=answer_http)
        thread.start()
        try:
            with pytest.raises(errors.AgentUnreachable, match="Something else than the agent answers"):
                netcat_to(host, listening, reached_at="127.0.0.2").open(target_of(host, disk))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_agent_without_our_certificate_is_no_agent(host: Host, address: str, disk: Address, tmp_path: Path) -> None:
    """It answers over gRPC, but at the port there is somebody else."""
    name, port = address.rsplit(":", 1)
    endpoint, own = Endpoint(name, int(port), name), credentials(host)
    stranger = NetcatTransport(
        lambda _: Agent(endpoint, own), lambda _: endpoint._replace(server_name="other.invalid"), own
    )
    with pytest.raises(errors.AgentUnreachable, match=r"cannot be used from here.*certificate"):
        stranger.open(target_of(host, disk))


@pytest.mark.parametrize("clear_text", [True, False])
def test_a_reading_is_closed_from_another_thread_and_the_next_one_has_a_new_socket(
    host: Host, address: str, disk: Address, clear_text: bool
) -> None:
    with contextlib.closing(netcat_to(host, address, clear_text=clear_text).open(target_of(host, disk))) as opened_disk:
        slow = ReadRequest(0, SIZE, incremental=False, window=MiB, bytes_per_second=1)
        reading = opened_disk.read(slow)
        closing = threading.Timer(0.2, reading.close)
        closing.start()
        for _ in range(2):
            with pytest.raises(errors.TransportError, match="closed before its end"):
                list(reading)
        closing.join()
        assert sum(block.length for block in read(opened_disk)) == SIZE


def test_a_reading_that_is_left_half_way_and_the_next(host: Host, address: str, disk: Address) -> None:
    with contextlib.closing(netcat_to(host, address).open(target_of(host, disk))) as opened_disk:
        with contextlib.closing(opened_disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB))) as reading:
            first = next(iter(reading))
        assert read(opened_disk)[0] == first


def test_a_socket_that_the_agent_gave_up_is_replaced(
    host: Host, address: str, disk: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netcat, "PATIENCE", 0.1)
    with contextlib.closing(netcat_to(host, address).open(target_of(host, disk))) as opened_disk:
        link = opened_disk._idle
        assert link is not None
        assert link.wait(5), "the agent hangs up"
        assert sum(block.length for block in read(opened_disk)) == SIZE
        assert opened_disk._idle is not link


@pytest.fixture
def agent_process(host: Host, ports: list[int]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An agent of its own, and its address."""
    configuration = host.configuration(socket_ports=ports, clear_text=True, pid_file="agent.pid")
    command = [sys.executable, "-m", "blockferry_agent", "--config", configuration]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        processes.wait_for("the agent", (host.directory / "agent.pid").exists)
        yield process, json.loads(configuration.read_text())["listen"][0]
    finally:
        process.kill()
        process.wait()
        (host.directory / "agent.pid").unlink(missing_ok=True)


def test_an_agent_that_hangs_is_noticed_and_one_that_is_slow_is_waited_for(
    host: Host, agent_process: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel holds the connection in either case."""
    monkeypatch.setattr(transport, "SILENCE", 0.1)
    monkeypatch.setattr(grpc_agent, "PROBE_TIMEOUT", 1.0)
    process, listening = agent_process
    with (
        nbd_servers.nbdkit(host.directory, "--filter=delay", "pattern", "2M", "delay-read=400ms") as served,
        contextlib.closing(netcat_to(host, listening).open(target_of(host, served, 2 * MiB))) as opened_disk,
    ):
        assert sum(block.length for block in read(opened_disk, MiB)) == MiB
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(errors.AgentUnreachable, match="in time"):
            read(opened_disk, MiB)
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("clear_text", [True, False])
def test_a_slow_consumer_does_not_grow_memory(host: Host, address: str, clear_text: bool) -> None:
    """Both sides are in this process. What waits in the kernel is bounded by it."""
    page = resource.getpagesize()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    with nbd_servers.nbdkit(host.directory, "pattern", "512M") as served:
        opened_disk = netcat_to(host, address, clear_text=clear_text).open(target_of(host, served, 512 * MiB))
        with (
            contextlib.closing(opened_disk),
            contextlib.closing(opened_disk.read(ReadRequest(0, 512 * MiB, False, MiB))) as reading,
        ):
            blocks = iter(reading)
            for _ in range(20):
                next(blocks)
            before = resident()
            for _ in range(20):
                time.sleep(0.02)  # the consumer is slow
                assert next(blocks).length == MiB
            assert resident() - before < 32 * MiB
