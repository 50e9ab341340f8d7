"""The parts that a configuration describes, made when a job asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from blockferry import config, deploy, engine, repository
from blockferry.transport.disk import Target, Transport
from blockferry.transport.grpc_agent import Agent, Credentials, Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport
