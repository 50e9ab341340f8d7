"""
What the commands do. Jobs join the parts, which do not know each other: engine, transport, repository, deploy.

    backup    engine ─▶ transfers ─▶ transport ─▶ blocks ─▶ repository
    restore   repository ─▶ files
    verify    repository
    catalog   what the repository holds
    agents    engine (hosts) ─▶ deploy ─▶ transport (health)
"""
