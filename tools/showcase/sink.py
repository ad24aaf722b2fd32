"""The shop: an HTTP server that takes uploads (PUT). `python -m tools.showcase.sink HOST PORT PROGRESS-FILE`."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNK = 64 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    progress: Path

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        received = 0
        while received < length:
            chunk = self.rfile.read1(min(CHUNK, length - received))
            if not chunk:
                return
            received += len(chunk)
            self.progress.write_text(str(received))
        answer = json.dumps({"received": received, "client": list(self.client_address[:2])}).encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def main() -> None:
    host, port, progress = sys.argv[1:4]
    Handler.progress = Path(progress)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    Handler.progress.write_text("0")  # not before it listens: whoever sees the file connects
    server.serve_forever()


if __name__ == "__main__":
    main()
