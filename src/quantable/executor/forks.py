"""Workers forked from a process that has torch in memory already: each begins at once.

``python -m quantable.executor.forks`` reads requests from its standard input, a line of JSON
[frozen file, GPU or null] each, and answers on its standard output with a line [process, null] when
the worker has begun and [process, exit status] when it has ended. Nothing is computed before a
fork: only then are libraries with threads of their own safe to copy.
"""

import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.1  # between two looks at the workers
COMMAND = (sys.executable, "-m", "quantable.executor.forks")


@dataclass
class Fork:
    """A worker; ``code`` is its exit status once it has ended, a signal's number below 0."""

    pid: int
    code: int | None = None


class Forks:
    """The process that workers are forked from, with its variables beside this one's.

    Raises:
        ChildProcessError: by any call, when that process is gone; its workers end by themselves.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.server = subprocess.Popen(
            COMMAND,
            env=os.environ | dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select sees all that is there
            start_new_session=True,  # Ctrl-C is the pool's: it tells the workers
        )
        self.workers: dict[int, Fork] = {}

    def start(self, path: Path, gpu: str | None) -> Fork:
        """Begin a frozen cell, which sees one GPU or what this process sees (None)."""
        assert self.server.stdin is not None
        with suppress(BrokenPipeError):  # what reads the answer says so
            self.server.stdin.write(json.dumps([str(path), gpu]).encode() + b"\n")
        while (fork := self._hear()).code is not None:
            pass
        return fork

    def look(self) -> None:
        """Note which workers have ended."""
        assert self.server.stdout is not None
        while select.select([self.server.stdout], [], [], 0)[0]:
            self._hear()

    def wait(self) -> None:
        """Return when every worker has ended."""
        while self.workers:
            self._hear()

    def close(self) -> None:
        """End the process; workers that still run write a checkpoint and end too."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def _hear(self) -> Fork:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line:
            code = self.server.wait()
            raise ChildProcessError(f"the process that starts workers ended with status {code}")
        pid, code = json.loads(line)
        if code is None:
            self.workers[pid] = Fork(pid)
            return self.workers[pid]
        fork = self.workers.pop(pid)
        fork.code = code
        return fork


def serve(run: Callable[[Path], int]) -> None:
    """Fork a worker for every line of standard input until it ends."""
    requests, answers = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):  # workers have neither
        os.dup2(empty, number)

    def answer(pid: int, code: int | None) -> None:
        os.write(answers, json.dumps([pid, code]).encode() + b"\n")

    line = b""
    while True:
        if select.select([requests], [], [], LOOK_SECONDS)[0]:
            more = os.read(requests, select.PIPE_BUF)
            if not more:
                return
            line += more
        if line.endswith(b"\n"):  # one at a time: each waits for its answer
            answer(_fork(run, line, (requests, answers)), None)
            line = b""
        for pid, code in _ended():
            answer(pid, code)


def _ended() -> Iterator[tuple[int, int]]:
    """Workers that have ended, and their exit statuses."""
    with suppress(ChildProcessError):  # there is none
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _fork(run: Callable[[Path], int], request: bytes, pipes: Iterable[int]) -> int:
    """Begin a worker, which has no share in the pipes; its process."""
    pid = os.fork()
    if pid != 0:
        return pid
    code = 1
    try:
        for pipe in pipes:
            os.close(pipe)
        path, gpu = json.loads(request)
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        code = run(Path(path))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import quantable.run  # noqa: F401 - what takes seconds to load, once for all workers
    from quantable.executor.work import work

    serve(work)
