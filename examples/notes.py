"""Keeps notes in memory: POST / adds one, GET / lists them."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

notes: list[str] = []


class Notes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        notes.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.do_GET()

    def do_GET(self) -> None:
        body = "".join(f"{n}. {note}\n" for n, note in enumerate(notes, 1)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("127.0.0.1", int(sys.argv[1])), Notes).serve_forever()
