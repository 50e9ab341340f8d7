"""The command `blockferry`: parses what the operator typed, calls one job, prints what came of it."""

from blockferry.cli.program import main as main
