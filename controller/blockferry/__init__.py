"""Blockferry's controller: changed-block backup for oVirt, OLVM and RHV."""

from blockferry_agent import __version__ as __version__
