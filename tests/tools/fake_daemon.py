"""Stands in for meshd: a control socket that knows one method, so that the lab is tested for what it does itself."""

import json
import socketserver
import sys
import tomllib
from pathlib import Path

# P2WPKH of an arbitrary key hash: any output script that the faucet takes.
SCRIPT = "0014" + "11" * 20


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            request = json.loads(line)
            answer = {"jsonrpc": "2.0", "id": request["id"], "result": {"script_pubkey": SCRIPT}}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    config = tomllib.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    if config["node"].get("log_level") == "error":  # the test's way to say: fail
        sys.exit("the fake daemon was told to fail")
    path = Path(config["node"]["control_socket"])
    path.unlink(missing_ok=True)
    with socketserver.UnixStreamServer(str(path), Answer) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
