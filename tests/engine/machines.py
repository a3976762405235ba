"""Two machines on one: network namespaces that a cable connects, to be made by root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def problem() -> str:
    """Why there can be none here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    if subprocess.run(["sh", "-c", "command -v ip"], capture_output=True).returncode:
        return "there is no ip (iproute2)"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "network namespaces cannot be made" if made.returncode else ""


class Machines:
    """Two network namespaces, each with one address, and a cable between them."""

    def __init__(self, name: str):
        self.names = [f"{name}{i}" for i in range(2)]
        self.cables = [f"{name}v{i}" for i in range(2)]

    def command(self, number: int, *arguments) -> list[str]:
        """A command line that runs on one of the machines."""
        return ["ip", "netns", "exec", self.names[number], *map(str, arguments)]

    def environment(self, number: int) -> dict[str, str]:
        """What tells gloo by which interface the other one is reached."""
        return {**os.environ, "GLOO_SOCKET_IFNAME": self.cables[number]}

    def cable(self, state: str) -> None:
        """Pull the cable, "down", or plug it in, "up"."""
        ip("-n", self.names[1], "link", "set", self.cables[1], state)


def ip(*arguments) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_machines() -> Iterator[Machines]:
    machines = Machines(f"a3d{os.getpid()}"[-10:])
    try:
        for name in machines.names:
            ip("netns", "add", name)
        first, second = machines.cables
        ip("link", "add", first, "netns", machines.names[0], "type", "veth", "peer", second, "netns", machines.names[1])
        for name, cable, address in zip(machines.names, machines.cables, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for name in machines.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
