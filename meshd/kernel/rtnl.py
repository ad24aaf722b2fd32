"""pyroute2's message classes for rtnetlink, without the rest of pyroute2.

`import pyroute2.anything` first runs pyroute2/__init__.py, which imports the whole library with asyncio and
multiprocessing: 9 MB and a tenth of a second that a router does not need. So the package is stood in for by an empty
one with the same path while the four modules are loaded; whoever imports pyroute2 afterwards gets the real one.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType


def _package_alone(name: str) -> ModuleType:
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no module named {name!r}", name=name)
    made = ModuleType(name)
    made.__path__ = list(spec.submodule_search_locations)
    return made


_IS_OURS = "pyroute2" not in sys.modules
if _IS_OURS:
    sys.modules["pyroute2"] = _package_alone("pyroute2")
try:
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
finally:
    if _IS_OURS:
        for _name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
            del sys.modules[_name]

__all__ = ["fibmsg", "ifaddrmsg", "ifinfmsg", "ndmsg"]
