"""Pages in a real browser, where there is one."""

import contextlib
import json
import queue
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
FLAGS += ["--autoplay-policy=no-user-gesture-required"]  # a script's click is none


class Site(SimpleHTTPRequestHandler):
    """The run's folder, and a place where the probe leaves what it found."""

    def __init__(self, *arguments, found, asked, **options):
        self.found, self.asked = found, asked
        super().__init__(*arguments, **options)

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.found.put(json.loads(body))

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder):
    found, asked = queue.Queue(), []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Site, found=found, asked=asked, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found, asked
    finally:
        server.shutdown()
        server.server_close()


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")


def visited(folder, tmp_path) -> tuple[list, set[str], str]:
    """(what `probe.html` in `folder` left, the paths that were asked for, the browser's log)."""
    log = tmp_path / "browser.log"
    with served(folder) as (address, found, asked), log.open("wb") as stream:
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]
        browser = subprocess.Popen([*command, f"{address}/probe.html"], stdout=stream, stderr=stream)
        try:
            views = found.get(timeout=90)
        finally:
            browser.terminate()
            browser.wait(30)
    return views, {path for path in asked if path != "/favicon.ico"}, log.read_text(errors="replace")
