"""A chat endpoint on loopback that compares two answers by a rule: what a judge is tested against."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.lock, self.requests = threading.Lock(), []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def judge_server(decide):
    """Yields the server; `server.url` ends in /v1 and `server.requests` are the (headers, body) that came, in order.

    `decide` takes the two answers as shown and the number of the request from 1. It returns the reply's words, or
    (status, headers, body).
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append((dict(self.headers), body))
                number = len(server.requests)
            asked = body["messages"][-1]["content"]
            shown = [asked.partition(f"<answer_{each}>\n")[2].partition(f"\n</answer_{each}>")[0] for each in "AB"]
            said = decide(*shown, number)
            words = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
            status, headers, content = (200, {}, words) if isinstance(said, str) else said
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content.encode())))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = JudgeServer(Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
