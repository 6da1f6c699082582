"""Run as a script: starts the embedded server, and stops it when no process holds a lease any more.

    python watchdog.py LEASE_FILE SERVER [ARGUMENT ...]

Everybody who uses the server holds a shared lock on the lease file, which the kernel takes away when a process ends, however it
ends. So the exclusive lock comes to us when nobody is left. Imports next to nothing: it has to be up in an instant.
"""

import fcntl
import os
import signal
import sys
from types import FrameType


def main(lease_file: str, command: list[str]) -> int:
    directory = os.path.dirname(lease_file)
    lease = os.open(lease_file, os.O_RDWR)
    # No reaction to the end of the server before its number is known.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    server = os.fork()
    if server == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        try:
            os.execv(command[0], command)
        finally:
            os._exit(127)
    with open(os.path.join(directory, "pids"), "w") as file:
        file.write(f"{os.getpid()} {server}\n")

    def server_ended(_: int, __: FrameType | None) -> None:
        # Its users see the broken connection; the directory stays for them, they remove it with their last lease.
        os.waitpid(server, 0)
        os._exit(0)

    signal.signal(signal.SIGCHLD, server_ended)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    fcntl.lockf(lease, fcntl.LOCK_EX)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.kill(server, signal.SIGTERM)
    os.waitpid(server, 0)
    for entry in os.listdir(directory):
        os.unlink(os.path.join(directory, entry))
    os.rmdir(directory)
    return 0  # only now does the lock go: whoever waits for it finds no server and no directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
