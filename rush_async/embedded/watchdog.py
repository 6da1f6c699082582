"""A script that starts the embedded server, and stops it when no process has a lease any more.

    python watchdog.py LEASE_FILE RUNTIME_FILE SERVER [ARGUMENT ...]

Each process that uses the server has a shared lock on the lease file, which the kernel releases when the process ends, however
that is. So the watchdog gets the exclusive lock when no process is left. While the server lives, the watchdog has a lock on the
runtime file in the data directory (an empty argument: there is none), so that no second server opens the same data.

A server with a data directory that dies while a process has a lease is started again on the same socket and data, so that its
clients find it where they look. It is not where it ended with an error of its own, say because its data cannot be read, nor
without a data directory, for then the data is gone: the runtime directory is removed, which tells clients that it has ended.

Imports few modules, to start fast.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time

KILL_AFTER = 10.0  # seconds; a script that does not end keeps the server from ending by itself
SHORT_LIFE = 10.0  # seconds; a server that died sooner is started again after a pause that doubles
LONGEST_PAUSE = 2.0  # seconds
SIGNALS = (signal.SIGCHLD, signal.SIGTERM)


def main(lease_file: str, runtime_file: str, command: list[str]) -> None:
    directory = os.path.dirname(lease_file)
    os.chdir("/")
    os.umask(0o077)  # the data directory may be open to others, the data is not
    os.closerange(3, 1024)  # inheritable descriptors of the process that started us
    if runtime_file:
        runtime = os.open(runtime_file, os.O_RDWR | os.O_NOFOLLOW)
        fcntl.lockf(runtime, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lease = os.open(lease_file, os.O_RDWR)
    # The server may end before the handlers are set.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    server, started_at, pause, is_stopping = start(directory, command), time.monotonic(), 0.0, False

    def on_child_signal(*_: object) -> None:
        nonlocal server, started_at, pause
        if is_stopping:
            return
        pid, status = os.waitpid(server, os.WNOHANG)
        if pid == 0:
            return  # it was only frozen
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if runtime_file and (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0):
            pause = min(2 * pause + 0.05, LONGEST_PAUSE) if time.monotonic() - started_at < SHORT_LIFE else 0.0
            time.sleep(pause)
            if is_leased(lease):
                os.write(2, f"{describe(status)} while it was in use: starting it again\n".encode())
                server, started_at = start(directory, command), time.monotonic()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                return
        remove(directory)
        os._exit(0)

    def stop(*_: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    fcntl.lockf(lease, fcntl.LOCK_EX)
    stop()


def is_leased(lease: int) -> bool:
    """Whether a process has a lease, and none is ending the server."""
    try:
        fcntl.lockf(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the last user has the exclusive lock while it ends the server
    except OSError:
        return False
    try:
        fcntl.lockf(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fcntl.lockf(lease, fcntl.LOCK_UN)
        return True
    return False


def describe(status: int) -> str:
    return f"the server was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "the server ended"


def start(directory: str, command: list[str]) -> int:
    """Starts the server and returns its process id. Signals are blocked."""
    watchdog = os.getpid()
    server = os.fork()
    if server == 0:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        become_server(watchdog, directory, command)
    return server


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
    """Removes our directory as far as it is still there: a user of the server may remove it too. Where others may write to
    TMPDIR, a link may have taken its place, and what that leads to stays."""
    with contextlib.suppress(OSError):
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(folder).st_uid != os.geteuid():
            return
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
        os.rmdir(directory)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
