"""Run as a script: starts the embedded server, and stops it when no process holds a lease any more.

    python watchdog.py LEASE_FILE NOTE_FILE SERVER [ARGUMENT ...]

Everybody who uses the server holds a shared lock on the lease file, which the kernel takes away when a process ends, however it
ends. So the exclusive lock comes to us when nobody is left. While the server lives we hold a lock on the note in its data
directory, if there is one (else the argument is empty), so that no second server opens the same files.
Imports next to nothing: it has to be up in an instant.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time

# A server that does not end by itself, because of a script that does not, is killed after so many seconds.
PATIENCE = 10.0


def main(lease_file: str, note_file: str, command: list[str]) -> None:
    directory = os.path.dirname(lease_file)
    os.chdir("/")
    os.closerange(3, 1024)  # what our user happened to leave inheritable
    if note_file:
        note = os.open(note_file, os.O_RDWR)
        fcntl.lockf(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lease = os.open(lease_file, os.O_RDWR)
    # No reaction to the end of the server before we are ready for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    watchdog = os.getpid()
    server = os.fork()
    if server == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        become_server(watchdog, directory, command)

    def ended(*_: object) -> None:
        # Also when it died by itself: its users see the broken connection, and start another.
        if os.waitpid(server, os.WNOHANG)[0] != 0:  # it may just have been frozen
            remove(directory)
            os._exit(0)

    def stop(*_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
        os.kill(server, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while os.waitpid(server, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(server, signal.SIGKILL)
            time.sleep(0.002)
        # Only when we end do the locks go: whoever waits for them finds no server and no directory.
        remove(directory)
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGCHLD, ended)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    fcntl.lockf(lease, fcntl.LOCK_EX)
    stop()


def become_server(watchdog: int, directory: str, command: list[str]) -> None:
    try:
        if sys.platform == "linux":
            die_with(watchdog)
        with open(os.path.join(directory, "pids"), "w") as file:
            file.write(f"{watchdog} {os.getpid()}\n")
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be run: {error}\n".encode())
    finally:
        os._exit(127)


def die_with(watchdog: int) -> None:
    """The server is told to end when the watchdog is killed; elsewhere than on Linux it lives until its last user's release."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != watchdog:
        os._exit(127)


def remove(directory: str) -> None:
    for folder, folders, files in os.walk(directory, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):  # a user was faster
                os.unlink(os.path.join(folder, name))
        for name in folders:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(folder, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
