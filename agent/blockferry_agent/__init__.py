"""
Blockferry's agent: reads the blocks of a disk on the hypervisor that serves it.

Runs on Python 3.9 and later with grpcio, protobuf and xxhash. `reader` and what it rests on is a library too: the
controller runs the very same reader where no agent can answer.
"""

__version__ = "0.2.0"
