"""A web server on this machine."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serve(handler):
    """Yield a running server with `url`, `pages` (for the handler) and `requests` (a list that it fills)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.pages, server.requests = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
