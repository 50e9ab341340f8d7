"""
What is done on a host: these modules are sent to the host's Python, 3.9 or later, and import nothing but each other.

    main          one request, one answer: the way in
    deployment    install, roll back, renew, remove: the story
    directory     the agent's directory, and files that are there completely or not at all
    releases      what was deployed: the one in force, and the one before it
    supervisor    what keeps the agent running, and how it is chosen
    systemd       a service of systemd, under a user of its own
    unit          the service's unit, with its sandbox
    user          that user
    processes     a process of the login's user, where there is no systemd
    firewall      firewalld's rule for the agent's ports
    checks        what a backup needs on a host, thing by thing
    commands      the host's own programs
    refusal       what cannot be done, as a sentence
"""
