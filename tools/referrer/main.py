"""`tools/reference`: the reference pages and the JSON Schemas, from the code.

What it writes is not kept in the repository: it would be wrong as soon as somebody adds a key. tools/package and the
documentation call it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from meshd.ctl.command import envelope
from meshd.ctl.commands import COMMANDS
from tools.referrer.pages import all_pages

DEFAULT = Path(__file__).resolve().parents[2] / "docs" / "reference"


def files() -> dict[str, str]:
    """By path below the directory that they go to."""
    made = all_pages()
    listed = ["# JSON Schemas of meshctl --json", ""]
    for command in COMMANDS:
        name = f"meshctl-{command.words.replace(' ', '-')}.schema.json"
        made[f"schemas/{name}"] = json.dumps(envelope(command), indent=1) + "\n"
        listed.append(f"- [`meshctl {command.words}`]({name})")
    made["schemas/README.md"] = "\n".join(listed) + "\n"
    return made


def write(directory: Path) -> None:
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/reference",
        description="Writes the reference of commands, configuration, control socket and metrics, and JSON Schemas.",
        epilog="Example: tools/reference /tmp/reference",
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=DEFAULT, metavar="DIR", help="where to; docs/reference if left out"
    )
    write(parser.parse_args(argv).directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
