"""
The agent on the hosts: bring it there over SSH, take it away.

    agents        deploy, remove: the story
    login         what it takes to reach a host
    ssh           the way to a host: commands, as root where sudo lets us
    sshconfig     what the operator's own ssh_config says of the way
    hostkey       the keys by which a host is known beforehand
    interpreter   the Python that a host has
    bundle        the agent and its wheels in one archive, made for that Python
    carried       a deployment that is carried to a host by hand
    directory     the agent's directory on a host, as seen from here
    onhost        the program that does the work in it, sent to the host's Python
    pki, issuer   the controller's own certificate authority
    registry      what the controller knows about the agents that it deployed
    faults        the border to the controller's own disk
"""

from blockferry.deploy.agents import Agents as Agents
from blockferry.deploy.agents import Host as Host
from blockferry.deploy.agents import Options as Options
from blockferry.deploy.agents import Patience as Patience
from blockferry.deploy.agents import Way as Way
from blockferry.deploy.directory import Finding as Finding
from blockferry.deploy.directory import Reading as Reading
from blockferry.deploy.directory import ServiceSettings as ServiceSettings
from blockferry.deploy.login import Login as Login
from blockferry.deploy.pki import Authority as Authority
from blockferry.deploy.registry import Record as Record
