"""The daemon. Owns every socket, file, netlink message and task."""

__version__ = "0.1.0"
