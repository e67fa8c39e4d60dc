"""A SLURM cluster on this machine, for tests: munge, one controller, one or more node daemons.

It needs Debian's packages slurm-wlm and munge, and root. Everything it writes lies in one folder,
its ports are free ones, and it ends its own daemons only:

    eval "$(python tests/slurm/cluster.py up --nodes 2)"     sets SLURM_CONF, which selects it
    python tests/slurm/cluster.py down
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """\
ClusterName=quantable
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
# The nodes have the cores they say, whatever this machine has.
SlurmdParameters=config_overrides
SlurmdTimeout=20
InactiveLimit=0
KillWait=30
OverTimeLimit=0
MinJobAge=900
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A cluster whose files lie in ``folder``; ``conf`` is its slurm.conf.

    The folder must be one that the user munge can enter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"
        self.environ = {"SLURM_CONF": str(self.conf)}

    def up(self, nodes: int = 1, cpus: int = 2) -> None:
        """Start the daemons and wait until every node is idle; RuntimeError if that fails."""
        munge = self.folder / "munge"
        for folder in (self.folder, munge, self.folder / "state"):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        for path in (munge, key):
            shutil.chown(path, "munge", "munge")
        key.chmod(0o600)
        ports = _free_ports(nodes + 1)
        lines = [
            f"NodeName=n{i} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={cpus} State=UNKNOWN"
            for i, port in enumerate(ports[1:])
        ]
        self.conf.write_text(
            CONF.format(
                host=socket.gethostname(),
                port=ports[0],
                munge=munge,
                folder=self.folder,
                nodes="\n".join(lines),
            )
        )
        munged = shutil.which("munged") or "/usr/sbin/munged"
        files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        self._start("runuser", "-u", "munge", "--", munged, f"--socket={munge}/socket", *files)
        self._start("slurmctld", "-f", str(self.conf))
        for i in range(nodes):
            self.start_node(i)
        self._wait(nodes)

    def start_node(self, node: int) -> None:
        """Start one node's daemon."""
        (self.folder / f"spool-n{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-f", str(self.conf), "-N", f"n{node}")

    def stop_node(self, node: int) -> None:
        """End one node's daemon; its jobs' steps go on, as on a real node."""
        self._end(self.folder / f"slurmd-n{node}.pid")

    def lose_node(self, node: int) -> None:
        """End a node's daemon and all of its jobs' processes at once, as when a machine goes."""
        mark = {f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME=n{node}"}
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        own = {pid for pid in pids if mark <= set(_read(pid, "environ").split("\0"))}
        parents = {_parent(pid) for pid in own}
        steps = {pid for pid in parents if _read(pid, "comm").startswith("slurmstepd")}
        daemon = self.folder / f"slurmd-n{node}.pid"
        for pid in [int(daemon.read_text()), *steps, *own]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.unlink()

    def down(self) -> None:
        """Cancel what runs, end the daemons."""
        if (self.folder / "slurmctld.pid").exists():
            self.run("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 15
            while self.queue() and time.monotonic() < deadline:
                time.sleep(0.2)
        for path in sorted(self.folder.glob("slurmd-*.pid")):
            self._end(path)
        self._end(self.folder / "slurmctld.pid")
        self._end(self.folder / "munge" / "pid")

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands on this cluster and return what it printed."""
        environ = os.environ | self.environ
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{self._logs()}")
        return done.stdout

    def queue(self) -> dict[str, str]:
        """Job (or array task) id to state, of what is pending, running or completing."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T", check=False)
        return dict(line.split() for line in lines.splitlines())

    def let_go(self) -> None:
        """Let requeued jobs start within seconds: SLURM itself keeps each back for two minutes.

        Not at once: a node refuses a job that begins in the second in which it was requeued ("job
        credential revoked"), and SLURM then drops it.
        """
        lines = self.run("squeue", "--noheader", "--array", "--format=%i|%r|%S", check=False)
        for job, why, start in (line.split("|") for line in lines.splitlines()):
            soon = datetime.now() + timedelta(seconds=10)
            waits = why == "BeginTime" and start != "N/A"  # which it is for a moment
            if waits and datetime.fromisoformat(start) > soon:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now+5", check=False)

    def node_of(self, job: str) -> int:
        """Return the number of the node that a job runs on."""
        return int(self.run("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()[1:])

    def _start(self, *command: str) -> None:
        done = subprocess.run(
            command, env=os.environ | self.environ, capture_output=True, text=True, timeout=30
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}{self._logs()}")

    def _wait(self, nodes: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()
            if states == ["idle"] * nodes:
                return
            time.sleep(0.2)
        raise RuntimeError(f"the nodes are {states}, not idle{self._logs()}")

    def _logs(self) -> str:
        """Return the ends of the daemons' logs."""
        ends = []
        for path in sorted([*self.folder.glob("*.log"), self.folder / "munge" / "log"]):
            if path.exists():
                ends += [f"\n{path.name}:", *path.read_text().splitlines()[-8:]]
        return "\n".join(ends)

    def _end(self, pid_file: Path) -> None:
        """End the daemon of a pid file, if it is still the one that this folder's files started."""
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text())
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            if not self._ours(pid):
                break
            os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while self._ours(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        pid_file.unlink(missing_ok=True)

    def _ours(self, pid: int) -> bool:
        """Whether the process lives and its command line names this folder."""
        try:
            return str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False


def _read(pid: int, name: str) -> str:
    """Return a file of a process; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    """Return the process that a process belongs to; 0 when it is gone."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    lost = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if lost:
        return f"no {', '.join(lost)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "the daemons are started as root"


@contextmanager
def cluster(nodes: int = 1, cpus: int = 2) -> Iterator[Cluster]:
    """Have a cluster for the length of a block, in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="quantable-slurm-"))
    made = Cluster(folder)
    try:
        made.up(nodes, cpus)
        yield made
    finally:
        made.down()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Start or end a cluster from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["up", "down"])
    default = Path(tempfile.gettempdir()) / "quantable-slurm"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=2, help="cores that each node offers")
    asked = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    made = Cluster(asked.folder)
    if asked.action == "down":
        made.down()
        return 0
    if (made.folder / "slurmctld.pid").exists():
        print(f"error: there is a cluster in {made.folder}; end it with: down", file=sys.stderr)
        return 2
    try:
        made.up(asked.nodes, asked.cpus)
    except RuntimeError as error:
        made.down()
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={made.conf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
