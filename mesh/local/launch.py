"""Becomes another program, after asking the kernel to be told of its parent's death. Run by path, for the supervisor:

    python -I -S launch.py PARENT SIGNAL UID GID PROGRAM [ARGUMENT…]

A supervisor that is killed with -9 can stop nobody, and children that live on would hold ports and data against the
next start. They get the signal of an orderly stop, so that calls in progress still finish and PostgreSQL takes its
backends with it. This is a program of its own and no `preexec_fn`: the supervisor has threads (gRPC's), and no Python
may run between fork and exec in a process that has. The account is changed here, because the kernel forgets the
request when a process changes its user.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
NOBODY_ELSE = "-"
"""In place of UID and GID: stay who you are."""


def main() -> None:
    parent, stop_signal, uid, gid, *argv = sys.argv[1:]
    if uid != NOBODY_ELSE:
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(stop_signal))
        if os.getppid() != int(parent):  # it died in between
            sys.exit(1)
    os.execv(argv[0], argv)  # noqa: S606  which program is the supervisor's to say


if __name__ == "__main__":
    main()
