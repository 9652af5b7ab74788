"""Becomes another program: as another user if asked, and one that goes down with the process that started it.

Run by path with ``python -I -S`` and only the standard library, so that it starts in a few milliseconds and needs
nothing that the other user cannot read. It replaces ``preexec_fn``, which is not safe in a process with threads.

    launch.py PARENT_PID UID GID PROGRAM ARGUMENT...        UID -1: stay who we are
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return. PROGRAM gets SIGINT when the thread that started it ends (Linux)."""
    parent, uid, gid = (int(argument) for argument in arguments[:3])
    command = arguments[3:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:
            sys.exit("the parent ended before its child began")
    # Python ignores these two, and an ignored signal stays ignored in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 - the command is the tracker's own


if __name__ == "__main__":
    main(sys.argv[1:])
