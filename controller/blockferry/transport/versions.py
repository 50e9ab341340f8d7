"""Whether this controller and an agent are of versions that work together; the agent looks after itself, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

import blockferry_proto
from blockferry import errors
from blockferry_agent import __version__
from blockferry_proto import PROTOCOL, PROTOCOL_KEY, agent_pb2


def check(reply: agent_pb2.DescribeReply, where: str) -> None:
    """Raise AgentUnreachable when an agent, by what it says of itself, is too far from this controller."""
    if blockferry_proto.understand(reply.protocol, PROTOCOL):
        return
    raise errors.AgentUnreachable(
        f"{where[0].upper()}{where[1:]} is version {reply.version} and speaks protocol {reply.protocol}, this "
        f"controller is version {__version__} and speaks protocol {PROTOCOL}: only neighbouring protocols work "
        "together.",
        "Run `blockferry agent deploy` for this host."
        if reply.protocol < PROTOCOL
        else "Upgrade Blockferry here, then run `blockferry agent deploy` for this host.",
    )


def telling(channel: grpc.Channel) -> grpc.Channel:
    """Return the channel with every call saying which protocol the controller speaks."""
    return grpc.intercept_channel(channel, _Teller())


class _Details(grpc.ClientCallDetails):
    """What gRPC knows of a call, with our metadata. It takes any object that has these names."""

    def __init__(self, of: Any) -> None:
        self.method = of.method
        self.timeout = of.timeout
        self.metadata = (*(of.metadata or ()), (PROTOCOL_KEY, str(PROTOCOL)))
        self.credentials = of.credentials
        self.wait_for_ready = of.wait_for_ready
        self.compression = of.compression


def _say(continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
    return continuation(_Details(details), request)


class _Teller(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _say(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _say(continuation, client_call_details, request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _say(continuation, client_call_details, request_iterator)
