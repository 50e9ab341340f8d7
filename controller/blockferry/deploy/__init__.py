"""
The agent on the hosts: bring it there over SSH, see how it does, take it away.

    agents        deploy, status, remove: the story
    ssh           the way to a host: pinned host keys, commands, files
    interpreter   the Python that a host has
    bundle        the agent and its wheels in one archive, made for that Python
    onhost        the program that does the work on the host, sent there over SSH
    pki           the controller's own certificate authority
    registry      what the controller knows about the agents that it deployed
    files         files that are there completely or not at all
"""
