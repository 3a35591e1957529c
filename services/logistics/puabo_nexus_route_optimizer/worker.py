"""A process that computes for `workers.Workers`: takes a call, answers, takes the next, and ends with its parent."""

import contextlib
import resource
import signal
import sys
from multiprocessing.connection import Connection


def main(pipe: int, memory: int) -> None:
    # Here, not above: the parent reads this module too, and does without the libraries.
    from services.logistics.puabo_nexus_route_optimizer import computing

    calls = Connection(pipe)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            seconds, name, arguments = calls.recv()
            signal.alarm(seconds)  # ends this process wherever it is, should nobody be left to do so
            try:
                answer = True, getattr(computing, name)(*arguments)
            except MemoryError as error:
                answer = False, MemoryError(*error.args)
            except Exception as error:
                error.add_note("in a worker process")
                answer = False, error
            signal.alarm(0)
            calls.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
