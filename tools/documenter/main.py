"""`tools/docs`: the documentation as a web site."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.documenter.links import dead_links, nav_faults
from tools.referrer import main as reference

ROOT = Path(__file__).resolve().parents[2]
_MKDOCS = (sys.executable, "-m", "mkdocs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/docs",
        description="Makes the reference from the code (docs/reference), looks for dead links, and builds the "
        "documentation as a web site. Diagrams are drawn by mermaid, which browsers load from unpkg.com; the rest of "
        "the site needs no network.",
        epilog="Examples: tools/docs; tools/docs --site /tmp/site; tools/docs serve; tools/docs --links-only",
    )
    parser.add_argument(
        "command", nargs="?", choices=("build", "serve"), default="build", help="serve: while pages are being written"
    )
    parser.add_argument("--site", type=Path, default=ROOT / "site", metavar="DIR", help="where to (site)")
    parser.add_argument("--address", default="127.0.0.1:8000", metavar="HOST:PORT", help="of serve (127.0.0.1:8000)")
    parser.add_argument("--links-only", action="store_true", help="look for dead links, and write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 built, 1 dead links or what mkdocs complains of, 2 usage."""
    options = _parser().parse_args(argv)
    generated = reference.files()
    faults = dead_links(ROOT, generated) + nav_faults(ROOT, generated)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults or options.links_only:
        return 1 if faults else 0
    reference.write(ROOT / "docs" / "reference")
    if options.command == "serve":
        arguments = ["serve", "--strict", "--dev-addr", options.address]
    else:
        arguments = ["build", "--strict", "--clean", "--site-dir", str(options.site.absolute())]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of its successor
    return 1 if subprocess.run([*_MKDOCS, *arguments], cwd=ROOT, env=quiet, check=False).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
