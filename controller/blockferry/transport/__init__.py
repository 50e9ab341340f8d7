"""
How blocks get from the host to the controller.

    netcat    an agent on the host reads over NBD; frames over a socket     (`netcat`)
    grpc      the same agent; gRPC over mutual TLS                          (`grpc_agent`)
    ssh       the same gRPC through an OpenSSH tunnel                       (`ssh`, `tunnel`, `leash`)
    imageio   the controller reads over HTTPS from Image I/O, no agent      (`imageio`)

Every transport opens a disk (`disk.Target`) as a `disk.Disk`, whose readings yield the same stream of blocks; the jobs
never ask which one they got. `ladder` walks the configured transports until one answers.
"""
