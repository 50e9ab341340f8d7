"""
A whole oVirt in a box: one engine simulator, one host, one certificate authority, one directory.

    with Lab.up() as lab:
        vm = lab.new_vm("db01")

The lab makes a VM's volumes and defines it on the host, then tells the engine with
`lab.engine.add_vm(spec: domains.VmSpec)`.  It makes the engine so:

    engine.EngineSimulator(directory: Path, ca: certificates.Authority, hosts=[host], username="admin@internal",
                           password=str)
    .start()  .stop()  .url
"""
