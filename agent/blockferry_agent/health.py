"""
The standard health service, grpc.health.v1: what monitoring asks, which knows nothing of Blockferry.

SERVING from the start, for the whole server ("") and for the agent's service by its name; NOT_SERVING as soon as the
agent stops.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from blockferry_agent.callers import Callers
from blockferry_proto import agent_pb2

SERVICE: str = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name


class Health(health.HealthServicer):
    """
    The library's service, for controllers only. Whoever watches takes none of the server's threads.

    callers: who is served.
    """

    def __init__(self, callers: Callers) -> None:
        super().__init__()
        self._callers = callers
        self.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 -- the contract's name
        self._callers.check(context)
        return super().Check(request, context)

    def Watch(  # noqa: N802 -- the contract's name
        self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Any:
        self._callers.check(context)
        return super().Watch(request, context, send_response_callback)

    def stop(self) -> None:
        """Say NOT_SERVING from now on, also to those who watch."""
        self.enter_graceful_shutdown()

    def serve(self, server: grpc.Server) -> None:
        """Have the server offer the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
