"""tools/compare: the simulator beside what others measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tests.comparison import lab, published

VERBS: dict[str, Callable[[Sequence[str] | None], int]] = {"babeld": published.main, "lab": lab.main}
USAGE = """usage: tools/compare babeld|lab [--help]

  babeld   the convergence curve of babeld on 49 nodes that meshnet-lab published
  lab      25 real daemons in network namespaces (root): their routes, and how fast they converge
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        print(USAGE, end="", file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return VERBS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
