"""All commands of meshctl, in the order of its help.

A new one: a `Command(...)` in one of these modules, or in a module of its own that is added to `_MODULES`; a schema of
its result in `meshd.schemas`, and one of the method that it calls; an answer and a text in tests/meshd/ctl_answers.py;
the rest (help, --json, --watch, --yes, completion, reference, published schema) is made from these.
"""

from __future__ import annotations

from meshd.ctl.command import Command
from meshd.ctl.commands import backup, config, credit, doctor, local, money, network, node, operator, service, wallet

_MODULES = (service, node, network, money, credit, wallet, backup, operator, config, doctor, local)
COMMANDS: tuple[Command, ...] = tuple(command for module in _MODULES for command in module.COMMANDS)
GROUPS: dict[str, str] = {name: text for module in _MODULES for name, text in module.GROUPS.items()}
