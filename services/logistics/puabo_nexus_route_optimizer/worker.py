"""A process that computes for `workers.Workers`: reads a call, answers, reads the next, and ends with its parent.

Frames on both pipes: 8 bytes of length, big-endian, then a pickle. Both ends are this package's own.
"""

import contextlib
import os
import pickle
import resource
import signal
import struct
import sys
from typing import IO

HEAD = struct.Struct(">Q")


def main() -> None:
    # Here, not above: the parent reads this module too, and does without the libraries.
    from services.logistics.puabo_nexus_route_optimizer import computing

    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    while (frame := read(calls)) is not None:
        seconds, name, arguments = pickle.loads(frame)  # noqa: S301  from our parent
        signal.alarm(seconds)  # ends this process wherever it is, should nobody be left to do so
        try:
            answer = True, getattr(computing, name)(*arguments)
        except MemoryError as error:
            answer = False, MemoryError(*error.args)
        except Exception as error:
            error.add_note("in a worker process")
            answer = False, error
        signal.alarm(0)
        with contextlib.suppress(BrokenPipeError):
            write(answers, pickle.dumps(answer))


def read(stream: IO[bytes]) -> bytes | None:
    """The next frame; None where the stream ends."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (length,) = HEAD.unpack(head)
    frame = stream.read(length)
    return frame if len(frame) == length else None


def write(stream: IO[bytes], frame: bytes) -> None:
    stream.write(HEAD.pack(len(frame)) + frame)
    stream.flush()


if __name__ == "__main__":
    main()
