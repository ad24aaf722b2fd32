"""The meshsim command as it is installed: with machine code where there is some (`simulator.compiled`)."""

from __future__ import annotations

import gc
import sys

from simulator import compiled


def main() -> int:
    compiled.activate(sys.argv[1:])
    if sys.argv[1:2] == ["run"]:
        gc.disable()  # but in the run itself (`simulator.run.few_collections`): what is left in the end need not go
    from simulator.main import main as run  # noqa: PLC0415 - it imports what has just been put aside

    status = run()
    gc.freeze()  # the process ends: not to take millions of objects apart, one by one, saves seconds
    return status


if __name__ == "__main__":
    sys.exit(main())
