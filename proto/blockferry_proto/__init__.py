"""The wire contract of Blockferry's agent: agent.proto, and the stubs generated from it."""

PROTOCOL = 1
"""Version of the contract (`DescribeReply.protocol`). Raised when an old peer would misunderstand a new one."""
