"""The machines of a hostfile: this command is started on each by ssh, and followed to its end."""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tokenizer.errors import UserError
from train.board import Failure
from train.launch import AGENT, FOLLOW, PORT, Cluster, agent_arguments, the_board, why
from train.state import Say

REACH = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
TOLD_ON = ("NCCL_", "GLOO_", "OMP_")  # variables that every machine is told
GRACE = 20.0  # seconds for the other machines to end by themselves when one has failed


@dataclass(frozen=True)
class Host:
    """A line of a hostfile: `name`, or `name slots=8`."""

    name: str
    slots: int | None = None


def read_hosts(path: Path) -> list[Host]:
    """The hosts of a file, in order; `#` begins a comment. Raises UserError for another layout."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the hostfile {path}: {error}") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 else "1"
        if len(words) > 2 or not slots.isdigit() or int(slots) < 1:
            raise UserError(f"{path}, line {number}: got {line!r}, wanted 'NAME' or 'NAME slots=8'")
        hosts.append(Host(words[0], int(slots) if len(words) == 2 else None))
    if not hosts:
        raise UserError(f"the hostfile {path} names no host; write one a line")
    if len({host.slots for host in hosts}) > 1:
        raise UserError(f"{path}: all hosts must have as many slots; split the larger ones' names")
    if len({host.name for host in hosts}) < len(hosts):
        raise UserError(f"{path}: a host is named twice; give it more slots")
    return hosts


def launch_on_hosts(worker: Sequence[str], out: Path, cluster: Cluster, say: Say) -> int:
    """Start the run on every host of the file and wait; see `launch`."""
    assert cluster.hostfile is not None
    hosts = read_hosts(cluster.hostfile)
    places = places_of(cluster, hosts)
    if cluster.dry_run:
        for host, place in zip(hosts, places, strict=True):
            agent = [sys.executable, "-m", AGENT, *agent_arguments(place, worker)]
            print(f"ssh {host.name} {shlex.quote('PYTHONSAFEPATH=1 ' + shlex.join(agent))}")
        return 0
    check_hosts(hosts)
    with the_board(out, head=True) as board:
        followed = [
            Followed(host, command_on(host, worker, place), place.node_rank == 0, say)
            for host, place in zip(hosts, places, strict=True)
        ]
        status = wait_for(followed)
        if status:
            raise reason_of(followed, board.failures(), status, places[0].size)
    return 0


def places_of(cluster: Cluster, hosts: Sequence[Host]) -> list[Cluster]:
    """What each host is of the cluster."""
    return [
        replace(
            cluster,
            hostfile=None,
            processes=cluster.processes or hosts[0].slots or cluster.each,
            nodes=len(hosts),
            node_rank=rank,
            master_addr=cluster.master_addr or hosts[0].name.rpartition("@")[2],
            master_port=cluster.master_port or PORT,
        )
        for rank in range(len(hosts))
    ]


def reason_of(
    followed: Sequence["Followed"], notes: Sequence[Failure], status: int, size: int
) -> UserError:
    """Why it ended: what a user can mend, what was killed, what a host says, a crash."""
    told = [line for one in followed if (line := one.error)]
    if told and not (notes and notes[0].kind == "error"):
        return UserError(next((line for line in told if "was killed by" in line), told[0]))
    if notes:
        return why(notes, {}, size)
    return UserError(f"a host ended with status {status} and without a word")


def check_hosts(hosts: Sequence[Host]) -> None:
    """Reach every host before anything is started."""

    def reach(host: Host) -> str | None:
        command = ["ssh", *REACH, host.name, "true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:  # there is no ssh here
            return str(error)
        words = done.stderr.strip().splitlines()
        return None if done.returncode == 0 else words[-1] if words else f"status {done.returncode}"

    with ThreadPoolExecutor(32) as pool:
        for host, reason in zip(hosts, pool.map(reach, hosts), strict=True):
            if reason is not None:
                raise UserError(
                    f"host {host.name} cannot be reached by ssh ({reason}); mend that, or take it "
                    "out of the hostfile"
                )


def command_on(host: Host, worker: Sequence[str], place: Cluster) -> list[str]:
    """The ssh command that starts this very run's part on a host."""
    told = {k: v for k, v in os.environ.items() if k.startswith(TOLD_ON)}
    told |= {"PYTHONSAFEPATH": "1", FOLLOW: "1"}
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(told.items()))
    by_hand = [sys.executable, "-m", "cm3leon", *worker]
    by_hand += ["--processes", str(place.processes), "--nodes", str(place.nodes)]
    by_hand += ["--node-rank", str(place.node_rank), "--master-addr", str(place.master_addr)]
    by_hand += ["--master-port", str(place.master_port)]
    there = f"cd {shlex.quote(os.getcwd())} && env {variables} {shlex.join(by_hand)}"
    return ["ssh", *REACH, host.name, there]


class Followed:
    """The command on one host: what it says is said here, its `error:` lines are kept."""

    def __init__(self, host: Host, command: Sequence[str], first: bool, say: Say) -> None:
        self.host, self.first, self.say = host, first, say
        self.error: str | None = None
        # its input stays open as long as this process lives: its end tells the other to end
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.threads = [
            threading.Thread(target=self.pass_on, args=(self.process.stdout, True), daemon=True),
            threading.Thread(target=self.pass_on, args=(self.process.stderr, False), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def pass_on(self, stream: IO[str], result: bool) -> None:
        for line in stream:
            text = line.rstrip("\n")
            if text.startswith("error: ") and not result:
                self.error = f"host {self.host.name}: {text.removeprefix('error: ')}"
            elif self.first and result:
                print(text, flush=True)
            else:
                self.say(text if self.first else f"{self.host.name}: {text}")

    def ended(self) -> int | None:
        """Its exit status, once it has one."""
        return self.process.poll()

    def end(self) -> None:
        """Close its input, and what it says is all said."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        for thread in self.threads:
            thread.join(5)


def wait_for(followed: Sequence[Followed]) -> int:
    """The exit status of all: 0 where all ended well, else the first other one."""
    failed, since = 0, 0.0
    try:
        while any(one.ended() is None for one in followed):
            time.sleep(0.1)
            if not failed and (bad := [s for one in followed if (s := one.ended())]):
                failed, since = bad[0], time.monotonic()
            if failed and time.monotonic() - since > GRACE:
                break
        return failed or next((s for one in followed if (s := one.ended())), 0)
    finally:
        for one in followed:
            one.end()
