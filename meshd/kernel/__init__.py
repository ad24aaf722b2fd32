"""The kernel's side of the daemon: links, addresses, routes, metering and enforcement, through netlink.

`Kernel.open` is the door: whatever was changed through it is put back when it closes, or at the next start if the
daemon was killed. All of it acts on the network namespace that the process is in, needs CAP_NET_ADMIN, and never
blocks.
"""

from meshd.kernel.gate import Port
from meshd.kernel.kernel import Kernel, KernelConfig, KernelInUseError, clean
from meshd.kernel.layout import Blocked, Route
from meshd.kernel.links import Link, Links
from meshd.kernel.meter import FlowCount, Meter
from meshd.kernel.netlink import NetlinkError
from meshd.kernel.nft import Direction, Gate, NftError
from meshd.kernel.route_watch import KernelRoute, RouteWatch
from meshd.kernel.routes import RouteTable

__all__ = [
    "Blocked",
    "Direction",
    "FlowCount",
    "Gate",
    "Kernel",
    "KernelConfig",
    "KernelInUseError",
    "KernelRoute",
    "Link",
    "Links",
    "Meter",
    "NetlinkError",
    "NftError",
    "Port",
    "Route",
    "RouteTable",
    "RouteWatch",
    "clean",
]
