"""The meshsim command as it is installed: with machine code where there is some (`simulator.compiled`)."""

from __future__ import annotations

import sys

from simulator import compiled


def main() -> int:
    compiled.activate(sys.argv[1:])
    from simulator.main import main as run  # noqa: PLC0415 - it imports what has just been put aside

    return run()


if __name__ == "__main__":
    sys.exit(main())
