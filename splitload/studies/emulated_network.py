"""Links of emulated devices: a network namespace each, joined to a bridge by a link with a cap (Linux, root).

The bridge has no way out of this machine: its devices reach each other and this host's end of it, and nothing else.

Source: tc-tbf(8), ip-netns(8), veth(4). A cap holds for each direction of a device's link by itself.
"""

from __future__ import annotations

import json
import re

from splitload.base.errors import StageError
from splitload.studies.system_commands import Run, run

DESK_HOST = "198.18.0.1"  # of this host; 198.18.0.0/15 is for measuring networks (RFC 2544)
BRIDGE = "splitload-br"
MOST_DEVICES = 200
_PREFIX_BITS = 24
_SPACE, _NEAR, _FAR = "splitload-device-", "splitload-", "uplink"  # namespaces; ends of links here, and there
_BURST_BYTES = 16 << 10  # at least MTU + 14; what a device may send at once, 3 ms at 40 Mbit/s
_OFFLOADED_BYTES = 8_000  # half of that: a timer may be late
_WAIT_MS = 100  # how long a packet may wait for its turn before it is dropped


class Network:
    """A bridge with a namespace for each device; one at a time on a machine, as names and addresses are fixed.

    Args:
        count: Devices.
        bits_per_s: Cap of each link, in each direction.
        run: Runs a command; tests give their own.
        offloads: Whether a network card is emulated that cuts what it is given into packets, as most do: what a device
            sends is not cut by its processor then.

    Raises:
        StageError: If the system refuses; what was made by then is removed.
    """

    def __init__(self, count: int, bits_per_s: int, run: Run = run, *, offloads: bool = False) -> None:
        if not 1 <= count <= MOST_DEVICES:
            raise StageError(f"a network of emulated devices has 1 to {MOST_DEVICES}, not {count}")
        self._run, self._offloads = run, offloads
        try:
            self._ip("link", "add", BRIDGE, "type", "bridge")
            self._ip("address", "add", f"{DESK_HOST}/{_PREFIX_BITS}", "dev", BRIDGE)
            self._ip("link", "set", BRIDGE, "up")
            for number in range(count):
                self._join(number, bits_per_s)
        except BaseException:
            self.close()
            raise

    def host(self, number: int) -> str:
        """Return the address of a device."""
        return f"{DESK_HOST.rpartition('.')[0]}.{number + 2}"

    def within(self, number: int) -> tuple[str, ...]:
        """Return the words before a command that run it on a device."""
        return "nsenter", f"--net=/run/netns/{_SPACE}{number}"

    def limit(self, number: int, bits_per_s: int) -> None:
        """Change the cap of a device's link, in each direction."""
        self._cap(number, bits_per_s, "change")

    def cut(self, number: int) -> None:
        """Cut the link of a device: what is sent is lost, and nobody is told."""
        self._ip("link", "set", f"{_NEAR}{number}", "down")

    def mend(self, number: int) -> None:
        """Mend it."""
        self._ip("link", "set", f"{_NEAR}{number}", "up")

    def close(self) -> None:
        """Remove bridge, links and namespaces; may be called again."""
        remove_network(self._run)

    def _join(self, number: int, bits_per_s: int) -> None:
        space, near = f"{_SPACE}{number}", f"{_NEAR}{number}"
        self._ip("netns", "add", space)
        self._ip("link", "add", near, "type", "veth", "peer", "name", _FAR, "netns", space)
        self._ip("link", "set", near, "master", BRIDGE, "up")
        self._ip("-n", space, "link", "set", "lo", "up")
        self._ip("-n", space, "address", "add", f"{self.host(number)}/{_PREFIX_BITS}", "dev", _FAR)
        self._ip("-n", space, "link", "set", "dev", _FAR, "up")
        if self._offloads:  # what a link is given at once is no more than passes at once
            self._ip("link", "set", near, "gso_max_size", str(_OFFLOADED_BYTES))
            self._ip("-n", space, "link", "set", "dev", _FAR, "gso_max_size", str(_OFFLOADED_BYTES))
        self._cap(number, bits_per_s, "add")

    def _cap(self, number: int, bits_per_s: int, change: str) -> None:
        cap = ("root", "tbf", "rate", f"{bits_per_s}bit", "burst", str(_BURST_BYTES), "latency", f"{_WAIT_MS}ms")
        self._run(("tc", "qdisc", change, "dev", f"{_NEAR}{number}", *cap))
        self._run(("tc", "-n", f"{_SPACE}{number}", "qdisc", change, "dev", _FAR, *cap))

    def _ip(self, *words: str) -> None:
        self._run(("ip", *words))


def remove_network(run: Run = run) -> None:
    """Remove the bridge, links and namespaces of emulated devices, whoever has made them.

    Raises:
        StageError: If one cannot be removed.
    """
    for space in json.loads(run(("ip", "-json", "netns", "list")) or "[]"):
        if space["name"].startswith(_SPACE):
            run(("ip", "netns", "delete", space["name"]))
    # A link goes with its namespace, but not at once.
    for link in sorted(_links(run), key=lambda name: name == BRIDGE):
        try:
            run(("ip", "link", "delete", link))
        except StageError:
            if link in _links(run):
                raise


def _links(run: Run) -> list[str]:
    """Return the names of the links of emulated devices, the bridge among them."""
    names = [link["ifname"] for link in json.loads(run(("ip", "-json", "link", "show")) or "[]")]
    return [name for name in names if name == BRIDGE or re.fullmatch(rf"{_NEAR}\d+", name)]
