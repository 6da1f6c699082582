"""A script that starts the embedded server, and stops it when no process has a lease any more.

    python watchdog.py LEASE_FILE RUNTIME_FILE SERVER [ARGUMENT ...]

Each process that uses the server has a shared lock on the lease file, which the kernel releases when the process ends, however
that is. So the watchdog gets the exclusive lock when no process is left. While the server lives, the watchdog has a lock on the
runtime file in the data directory (an empty argument: there is none), so that no second server opens the same data.
Imports few modules, to start fast.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time

KILL_AFTER = 10.0  # seconds; a script that does not end keeps the server from ending by itself


def main(lease_file: str, runtime_file: str, command: list[str]) -> None:
    directory = os.path.dirname(lease_file)
    os.chdir("/")
    os.umask(0o077)  # the data directory may be open to others, the data is not
    os.closerange(3, 1024)  # inheritable descriptors of the process that started us
    if runtime_file:
        runtime = os.open(runtime_file, os.O_RDWR)
        fcntl.lockf(runtime, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lease = os.open(lease_file, os.O_RDWR)
    # The server may end before the handlers are set.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    watchdog = os.getpid()
    server = os.fork()
    if server == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        become_server(watchdog, directory, command)

    def on_child_signal(*_: object) -> None:
        # The server may also just have been frozen. If it died, its users see the broken connection and start another.
        if os.waitpid(server, os.WNOHANG)[0] != 0:
            remove(directory)
            os._exit(0)

    def stop(*_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
        os.kill(server, signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER
        while os.waitpid(server, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(server, signal.SIGKILL)
            time.sleep(0.002)
        # Before our locks are released: a process that waits for one finds neither server nor directory.
        remove(directory)
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGCHLD, on_child_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    fcntl.lockf(lease, fcntl.LOCK_EX)
    stop()


def become_server(watchdog: int, directory: str, command: list[str]) -> None:
    try:
        if sys.platform == "linux":
            end_with(watchdog)
        with open(os.path.join(directory, "pids"), "w") as file:
            file.write(f"{watchdog} {os.getpid()}\n")
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be run: {error}\n".encode())
    finally:
        os._exit(127)


def end_with(watchdog: int) -> None:
    """Has the kernel end the server when the watchdog is killed. Only Linux can; elsewhere the last lease ends it."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != watchdog:
        os._exit(127)


def remove(directory: str) -> None:
    """Removes a directory as far as it is still there: a user of the server may remove it too."""
    for folder, folders, files in os.walk(directory, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))
        for name in folders:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(folder, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
