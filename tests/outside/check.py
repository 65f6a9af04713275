#!/usr/bin/env python3
"""Drives the examples from outside: curl, Python's http.client, Node's fetch, raw sockets, nginx and Chromium.

Usage: check.py PLAYGROUND [WORD…], the path of the built example; the others are beside it, and the virtual environment
with Python's prometheus_client is `venv` in the folder of the build. Loopback only, ports chosen by the system. Each check
is a function whose name says what holds; it asserts, or it fails. With words, only those run that have them in their name.
"""

import gzip
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

# Nothing of it is to lie about in the tree.
sys.dont_write_bytecode = True
from browser import Page  # noqa: E402

PORT = 0
# That of the example `compression`.
PAGES = 0
COUNT = 0


# Milliseconds of work that nobody is to wait for, and the seconds in which a client that did not wait is answered, on a busy
# machine as well.
WORK_MS, SECONDS = 6000, 4.5


def fresh():
    """An id that no check has used."""
    global COUNT
    COUNT += 1
    return f"c{COUNT}"


def curl(*args, timeout=20):
    return subprocess.run(["curl", "-sS", *args], capture_output=True, timeout=timeout, check=True).stdout.decode()


def url(path, port=None):
    return f"http://127.0.0.1:{port or PORT}{path}"


def journal(name, until="ended"):
    """The journal, once it holds `until`."""
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request("GET", f"/journal/{name}")
        response = connection.getresponse()
        entries = json.loads(response.read()) if response.status == 200 else []
        connection.close()
        if any(entry["event"] == until for entry in entries):
            return entries
        time.sleep(0.05)
    raise AssertionError(f"no {until} in the journal of {name}: {entries}")


def names(entries):
    return [entry["event"] for entry in entries]


def at(entries, event):
    return next(entry["at_us"] for entry in entries if entry["event"] == event)


def status(entries, event):
    return next(entry["status"] for entry in entries if entry["event"] == event)


def head_and_body(text):
    head, _, body = text.partition("\r\n\r\n")
    return head.lower(), body


# === curl ===


def curl_is_let_go_at_once_and_the_continuation_runs_after_the_flush():
    name = fresh()
    began = time.monotonic()
    head, body = head_and_body(curl("-i", url(f"/run?id={name}&close=1&then_ms={WORK_MS}")))
    took = time.monotonic() - began
    assert "content-length: 64" in head and "connection: close" in head, head
    assert len(body) == 64
    assert took < SECONDS, f"the client waited {took:.2f} s for a continuation of {WORK_MS} ms"
    events = journal(name)
    order = ["flushed", "continuation_start", "continuation_end", "hook_start", "hook_end", "ended"]
    assert [event for event in names(events) if event in order] == order, events
    assert at(events, "continuation_end") - at(events, "continuation_start") >= (WORK_MS - 100) * 1000


def the_connection_is_closed_by_the_server_while_the_continuation_runs():
    name = fresh()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", PORT), timeout=10) as client:
        client.sendall(f"GET /run?id={name}&close=1&then_ms={WORK_MS} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        data = b""
        while chunk := client.recv(65536):
            data += chunk
    assert time.monotonic() - began < SECONDS, "the end of the connection waited for the continuation"
    assert data.endswith(b"0123456789012345678901234567890123456789012345678901234567890123"), data


def curl_speaks_http_1_0_1_1_and_2():
    for flag, version in (("-0", "http/1.0 200"), ("--http1.1", "http/1.1 200"), ("--http2-prior-knowledge", "http/2 200")):
        name = fresh()
        head, body = head_and_body(curl("-i", flag, url(f"/run?id={name}&close=1&then_ms=50&body=1000")))
        assert head.startswith(version), head
        assert "content-length: 1000" in head and len(body) == 1000, head
        assert ("connection: close" in head) == ("http/2" not in head), head
        assert status(journal(name), "ended") == 0


def curl_that_leaves_with_a_whole_response_over_http_2_has_not_aborted():
    # A race, which a busy machine loses more often: no byte of a body tells when the end has left.
    for _ in range(10):
        for flags, query in ((["-I"], "chunks=3"), (["-I"], "close=1"), ([], "status=204"), ([], "redirect=/there")):
            name = fresh()
            curl("--http2-prior-knowledge", *flags, url(f"/run?id={name}&{query}"))
            entries = journal(name)
            assert entries[-1]["status"] == 0, (flags, query, entries)
            assert "flushed" in [entry["event"] for entry in entries], (flags, query, entries)


def curl_gets_a_head_with_the_headers_of_its_get():
    head, _ = head_and_body(curl("-I", url(f"/run?id={fresh()}&close=1&body=12345")))
    assert "content-length: 12345" in head, head


def curl_reads_a_compressed_body_with_an_exact_length():
    for encoding in ("gzip", "br", "zstd", "deflate"):
        name = fresh()
        with tempfile.NamedTemporaryFile() as file:
            target = url(f"/run?id={name}&close=1&compress=1&body=50000&then_ms=50")
            head = curl("-H", f"accept-encoding: {encoding}", "-D", "-", "-o", file.name, target).lower()
            body = file.read()
        assert f"content-encoding: {encoding}" in head, head
        assert f"content-length: {len(body)}" in head, (head, len(body))
        assert 0 < len(body) < 50000


def a_limit_answers_503_and_its_hook_sees_it():
    name = fresh()
    head, _ = head_and_body(curl("-i", url(f"/run?id={name}&limit_ms=500&work_ms={WORK_MS}")))
    assert head.startswith("http/1.1 503"), head
    events = journal(name)
    assert status(events, "hook_start") == 2, events
    assert 450_000 < at(events, "handler_dropped") < SECONDS * 1e6, events


# === raw sockets ===


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def leave_during_work(query, work_ms=WORK_MS):
    name = fresh()
    client = socket.create_connection(("127.0.0.1", PORT))
    client.sendall(f"GET /run?id={name}&work_ms={work_ms}&{query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    journal(name, "handler_start")
    reset(client)
    return journal(name)


def a_reset_drops_the_handler():
    events = leave_during_work("")
    assert "handler_dropped" in names(events) and "handler_end" not in names(events), events
    assert status(events, "handler_dropped") == 1
    assert at(events, "handler_dropped") < SECONDS * 1e6, events


def an_ignored_reset_does_not():
    events = leave_during_work("ignore_abort=1", 2000)
    assert "handler_end" in names(events) and status(events, "handler_end") == 1, events


def an_abort_and_then_the_limit_make_status_3():
    events = leave_during_work("ignore_abort=1&limit_ms=2000")
    assert status(events, "hook_start") == 3, events


# === Python's http.client ===


def http_client_reads_early_closed_answers():
    for query in ("close=1&then_ms=300", "close=1&chunks=5&then_ms=300", "chunks=5&chunk_ms=20&then_ms=300", "finish_ms=300"):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request("POST", f"/run?id={fresh()}&body=5000&{query}", body=b"x" * 1000)
        response = connection.getresponse()
        assert response.status == 200 and len(response.read()) == 5000
        connection.close()


# === an upload that nobody reads ===

UPLOADS = int(os.environ.get("EPILOGUE_TRIALS", "50"))


def an_uploading_curl_reads_its_whole_response():
    """The server answers at once, closes, and never reads the upload."""
    with tempfile.NamedTemporaryFile() as upload:
        upload.write(b"x" * 20_000_000)
        upload.flush()
        for body in (2048, 1048576):
            for _ in range(UPLOADS):
                target = url(f"/run?id={fresh()}&close=1&body={body}")
                # No `Expect`, so that it sends at once.
                command = ["curl", "-sS", "-H", "expect:", "-T", upload.name, "-X", "POST", target]
                curled = subprocess.run(command, capture_output=True, timeout=20, check=False)
                got = (curled.returncode, curled.stderr, len(curled.stdout))
                assert got == (0, b"", body), got


def an_uploading_http_client_reads_its_whole_response():
    upload = b"x" * 2_000_000
    for body in (2048, 1048576):
        for _ in range(UPLOADS):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
            connection.request("POST", f"/run?id={fresh()}&close=1&body={body}", body=upload)
            response = connection.getresponse()
            assert response.status == 200 and len(response.read()) == body
            connection.close()


# === nginx in front ===


def behind_nginx_with_buffering_the_client_is_let_go_at_once():
    """PHP's rows S1b and S34: there the recipe does nothing behind a buffering proxy."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory() as folder:
        # No port, since nginx takes none that the system chooses.
        listens = os.path.join(folder, "nginx.socket")
        config = os.path.join(folder, "nginx.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"""
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen unix:{listens};
    location / {{ proxy_pass http://127.0.0.1:{PORT}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering on; }} }}
}}
""")
        server = subprocess.Popen([nginx, "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(listens) == 0:
                        break
                time.sleep(0.05)
            for query in ("close=1", "chunks=3", f"finish_ms={WORK_MS}"):
                name = fresh()
                began = time.monotonic()
                asked = f"/run?id={name}&body=3000&then_ms={0 if 'finish' in query else WORK_MS}&{query}"
                body = curl("--unix-socket", listens, url(asked))
                assert len(body) == 3000
                assert time.monotonic() - began < SECONDS, query
                assert status(journal(name), "ended") == 0
        finally:
            server.terminate()
            server.wait()


# === Chromium ===


def chromium(target):
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}",
                 "--virtual-time-budget=3000", "--dump-dom"]
        return subprocess.run(["chromium", *flags, target], capture_output=True, timeout=90, check=True).stdout.decode()


def chromium_reads_an_early_closed_answer_and_shows_the_page():
    name = fresh()
    page = chromium(url(f"/run?id={name}&close=1&then_ms=1000&body=30"))
    assert "012345678901234567890123456789" in page, page
    assert status(journal(name), "ended") == 0
    page = chromium(url("/"))
    assert "<form" in page and "then_ms" in page and "tower-epilogue" in page, page[:500]


# === compressed pages: exact lengths, and both orders ===

PAGE = "".join(f"<p>line {number} of the page</p>\n" for number in range(2000))
ORDERS = ("within", "outside", "inside", "stamped")
ENCODINGS = ("gzip", "br", "zstd", "deflate")


def page_of(order):
    return PAGE + f"<p>{len(PAGE)} bytes</p>\n" if order == "stamped" else PAGE


def page_url(order, kind, name, then_ms=WORK_MS):
    return url(f"/{order}/{kind}?id={name}&then_ms={then_ms}", PAGES)


def works(names):
    """Waits until the work behind these pages is done."""
    for _ in range(400):
        done = curl(url("/done", PAGES)).split("\n")
        if all(name in done for name in names):
            # Exactly once.
            assert all(done.count(name) == 1 for name in names), done
            return
        time.sleep(0.05)
    raise AssertionError(f"not all of {names} in {done}")


def curl_reads_compressed_pages_in_both_orders_and_the_work_runs_behind_them():
    pages = []
    for order in ORDERS:
        for kind in ("known", "streamed"):
            for encoding in ENCODINGS:
                for version in ("-0", "--http1.1", "--http2-prior-knowledge"):
                    name = fresh()
                    pages.append(name)
                    began = time.monotonic()
                    what = (order, kind, encoding, version)
                    with tempfile.NamedTemporaryFile() as file:
                        asks = [version, "-H", f"accept-encoding: {encoding}", page_url(order, kind, name)]
                        head = curl("-D", "-", "-o", file.name, *asks).lower()
                        encoded = file.read()
                    assert time.monotonic() - began < SECONDS, what
                    assert f"content-encoding: {encoding}" in head and "vary: accept-encoding" in head, (what, head)
                    if order == "outside":
                        assert "content-length" not in head, (what, head)
                    else:
                        assert f"content-length: {len(encoded)}\r" in head, (what, head, len(encoded))
                    assert ("connection: close" in head) == (version != "--http2-prior-knowledge"), (what, head)
                    if encoding == "gzip":
                        assert gzip.decompress(encoded).decode() == page_of(order), what
                    elif encoding == "deflate":
                        assert zlib.decompress(encoded).decode() == page_of(order), what
    works(pages)


def curl_decodes_them_itself():
    # What it was built with: `deflate` and `gzip` always, the others mostly.
    features = curl("--version").lower()
    for encoding, feature in (("gzip", "libz"), ("deflate", "libz"), ("br", "brotli"), ("zstd", "zstd")):
        if feature not in features:
            continue
        for order in ORDERS:
            for kind in ("known", "streamed"):
                asks = ["--compressed", "-H", f"accept-encoding: {encoding}", page_url(order, kind, fresh(), 0)]
                assert curl(*asks) == page_of(order), (encoding, order, kind)


def curl_gets_a_head_with_the_headers_of_its_compressed_get():
    for order in ORDERS:
        for kind in ("known", "streamed"):
            target = page_url(order, kind, fresh(), 0)
            asks = ["-H", "accept-encoding: gzip", "-D", "-", "-o", "/dev/null", target]
            leave = ("date:", "transfer-encoding:")
            heads = [sorted(line for line in curl(*more, *asks).lower().splitlines() if line and not line.startswith(leave))
                     for more in ([], ["-I"])]
            assert heads[0] == heads[1], heads


def http_client_reads_compressed_pages():
    for order in ORDERS:
        for kind in ("known", "streamed"):
            for _ in range(10):
                connection = http.client.HTTPConnection("127.0.0.1", PAGES, timeout=10)
                name = fresh()
                # With an upload that nobody reads.
                connection.request("POST", f"/{order}/{kind}?id={name}&then_ms=0", body=b"x" * 300_000,
                                   headers={"accept-encoding": "gzip"})
                response = connection.getresponse()
                encoded = response.read()
                assert response.status == 200 and gzip.decompress(encoded).decode() == page_of(order)
                if order != "outside":
                    assert response.getheader("content-length") == str(len(encoded))
                connection.close()


NODE = """
const [port, page, stamped] = [process.argv[2], process.argv[3], process.argv[4]];
const orders = ['within', 'outside', 'inside', 'stamped'];
const ask = async (order, kind, number, options) => {
  const id = `node-${order}-${kind}-${number}`;
  const response = await fetch(`http://127.0.0.1:${port}/${order}/${kind}?id=${id}&then_ms=300`, options);
  const text = await response.text();
  if (response.status !== 200 || text !== (order === 'stamped' ? stamped : page)) {
    throw new Error(`${id}: ${response.status}, ${text.length} characters`);
  }
  const encoding = response.headers.get('content-encoding');
  if (encoding !== options.headers['accept-encoding']) throw new Error(`${id}: ${encoding}`);
};
(async () => {
  let count = 0;
  for (const encoding of ['gzip', 'br', 'deflate']) {
    for (const order of orders) {
      for (const kind of ['known', 'streamed']) {
        const headers = { 'accept-encoding': encoding };
        // One after the other, so that a connection that was closed could be taken for one to use again.
        for (let number = 0; number < 10; number++) await ask(order, kind, ++count, { headers });
        // And many at once, some with a body.
        await Promise.all(Array.from({ length: 10 }, (_, number) => ask(order, kind, ++count,
          number % 2 ? { headers } : { headers, method: 'POST', body: 'x'.repeat(1000) })));
      }
    }
  }
  console.log(count);
})().catch(error => { console.error(error, error.cause); process.exit(1); });
"""


def nodes_fetch_reads_compressed_pages():
    with tempfile.NamedTemporaryFile("w", suffix=".js") as script:
        script.write(NODE)
        script.flush()
        ran = subprocess.run(["node", script.name, str(PAGES), PAGE, page_of("stamped")],
                             capture_output=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    assert ran.stdout.decode().strip() == "480", ran.stdout


def chromium_reads_compressed_pages():
    for order in ORDERS:
        name = fresh()
        page = chromium(page_url(order, "streamed", name, 500))
        assert page.count("of the page</p>") == 2000 and "line 1999" in page, (order, page[-500:])
        assert (f"{len(PAGE)} bytes" in page) == (order == "stamped"), page[-500:]
        works([name])


# === the other examples ===


def example(name, **variables):
    """Another built example, and its port."""
    path = os.path.join(os.path.dirname(sys.argv[1]), name)
    server = subprocess.Popen([path], stdout=subprocess.PIPE, env=dict(os.environ, PORT="0", **variables), text=True)
    return server, int(server.stdout.readline().strip().rpartition(":")[2])


def a_models_answer_is_stored_whole_although_its_reader_left():
    with tempfile.TemporaryDirectory() as folder:
        database = os.path.join(folder, "answers.db")
        server, port = example("llm_stream", DATABASE=database)
        try:
            command = ["curl", "-sSN", "-m", "1", url("/ask?question=why", port)]
            left = subprocess.run(command, capture_output=True, timeout=20, check=False)
            assert left.returncode == 28, left
            read = left.stdout.decode().count("data: ")
            with sqlite3.connect(database) as connection:
                rows = []
                for _ in range(400):
                    if rows := connection.execute("SELECT answer, read_to_its_end FROM answers").fetchall():
                        break
                    time.sleep(0.05)
            assert len(rows) == 1, rows
            answer, read_to_its_end = rows[0]
            assert 0 < read < len(answer.split()) and answer.endswith("asked for again."), (read, answer)
            assert not read_to_its_end
            assert [stored["answer"] for stored in json.loads(curl(url("/answers", port)))] == [answer]
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=40)


def an_example_that_is_told_to_stop_finishes_its_work():
    # What it says when the work after its response is done.
    examples = [("early_close", "/signup", "sent: To"), ("axum_serve", "/", "done"), ("finish", "/webhook", "reported")]
    for name, path, done in examples:
        for stop in (signal.SIGTERM, signal.SIGINT):
            server, port = example(name)
            form = ["-d", "name=Ada", "-d", "email=ada@example.com"] if name == "early_close" else []
            hook = ["-H", "content-type: application/json", "-d", '{"id": 7, "event": "paid"}'] if name == "finish" else []
            curl(*form, *hook, url(path, port))
            server.send_signal(stop)
            said, _ = server.communicate(timeout=40)
            assert server.returncode == 0 and done in said, (name, stop, server.returncode, said)
            assert "everything ended by itself" in said, (name, stop, said)


# === the status page ===


class StatusPage:
    """The example `status_page`, as its clients and its operator see it."""

    def __enter__(self):
        self.server, self.app = example("status_page", STATUS_PORT="0")
        self.port = int(self.server.stdout.readline().strip().rpartition(":")[2])
        return self

    def __exit__(self, *_):
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(timeout=40)

    def ask(self, path, *args):
        return curl(*args, url(path, self.app))

    def numbers(self):
        return json.loads(curl(url("/?json&full", self.port)))

    def until(self, found):
        for _ in range(400):
            if found(numbers := self.numbers()):
                return numbers
            time.sleep(0.05)
        raise AssertionError(numbers)


def chromium_shows_the_status_page_and_keeps_it_up_to_date():
    shown = 'Number(document.querySelector("[data-name=%s]").innerText)'
    with StatusPage() as page, Page(url("/", page.port)) as browser:
        browser.until('document.getElementById("state")?.innerText === "live"')
        assert browser.value(shown % "accepted") == 0
        for number in range(12):
            page.ask("/signup", "-d", str(number))
        page.ask("/broken?token=secret-query", "-H", "cookie: secret=cookie")
        # Not reloaded: the numbers come by themselves.
        browser.value("window.sameDocument = true")
        browser.until(shown % "accepted" + " === 13")
        browser.until(shown % "running" + " === 5 && " + shown % "waiting" + " > 0")
        rows = browser.value('[...document.querySelectorAll("td.route")].map(cell => cell.innerText)')
        assert "POST /signup" in rows and not any("secret" in row for row in rows), rows
        assert "secret" not in browser.value("document.documentElement.outerHTML")
        browser.until(shown % "failed" + " === 1")
        browser.until('document.body.innerText.includes("Nothing is in flight.")', 30)
        assert browser.value(shown % "accepted") == page.numbers()["requests"]["accepted"] == 13
        assert browser.value("window.sameDocument"), "it was reloaded"
        picture = browser.value('document.querySelector("svg").getBoundingClientRect().height')
        assert picture > 50 and browser.value('document.querySelector("path.area").getTotalLength()') > 100
        # The policy holds: nothing else runs, or is loaded, in this page.
        assert not browser.errors, browser.errors
        if target := os.environ.get("EPILOGUE_SCREENSHOT"):
            take_the_readmes_picture(page, browser, target)
        browser.value('document.body.append(Object.assign(document.createElement("script"), {text: "window.ran = 1"}))')
        for _ in range(100):
            assert browser.value("window.ran === undefined"), "it ran"
            if browser.errors:
                break
            time.sleep(0.05)
        assert "Content Security Policy" in str(browser.errors), browser.errors


class Proxy(http.server.BaseHTTPRequestHandler):
    """One in front of a page; `behind` is its port, or None while nobody is behind it."""

    behind, refused = None, []

    def do_GET(self):  # noqa: N802: its caller's name
        behind = type(self).behind
        if behind is None:
            type(self).refused.append(self.path)
            return self.send_error(502)
        connection = http.client.HTTPConnection("127.0.0.1", behind, timeout=20)
        connection.request("GET", self.path, headers={"accept": self.headers["accept"]})
        response = connection.getresponse()
        self.send_response(response.status)
        self.send_header("content-type", response.getheader("content-type"))
        self.end_headers()
        try:
            while type(self).behind and (piece := response.read1()):
                self.wfile.write(piece)
        except (http.client.IncompleteRead, OSError):
            pass  # One of the two has left.

    def log_message(self, *_):
        pass


def chromium_finds_the_status_page_again_when_nobody_was_behind_its_proxy():
    live = 'document.getElementById("state")?.innerText === "live"'
    with StatusPage() as page, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        Proxy.behind = page.port
        with Page(url("/", proxy.server_port)) as browser:
            browser.until(live)
            browser.value("window.sameDocument = true")
            Proxy.behind = None
            for _ in range(600):
                # The stream of updates, and then the page.
                if any("events" not in path and "favicon" not in path for path in Proxy.refused):
                    break
                time.sleep(0.05)
            assert Proxy.refused, "nobody has asked"
            Proxy.behind = page.port
            browser.until(live + " && !window.sameDocument", 30)
        proxy.shutdown()


def take_the_readmes_picture(page, browser, target):
    """`EPILOGUE_SCREENSHOT=docs/status_page.png check.py … keeps_it_up_to_date`: after a minute of this and that."""

    def report(pages):
        threading.Thread(target=page.ask, args=[f"/report/{pages}"]).start()

    for number in range(1, 160):
        page.ask("/signup", "-d", str(number))
        if number % 23 == 0:
            page.ask("/broken")
        if number % 9 == 0:
            report(3 + number % 7)
        if number % 31 == 0:
            # It leaves before it is answered.
            subprocess.run(["curl", "-sS", "-m", "0.4", url("/report/8", page.app)], capture_output=True, timeout=20, check=False)
        time.sleep((0.45, 0.25, 0.6)[number // 40 % 3])
    report(9)
    for _ in range(7):
        page.ask("/signup", "-d", "x")
    time.sleep(1.3)
    browser.screenshot(target)


def chromium_shows_the_status_page_without_javascript():
    with StatusPage() as page:
        page.ask("/report/1")
        page.until(lambda numbers: numbers["requests"]["ended"] == 1)
        with Page(url("/", page.port), javascript=False) as browser:
            # It reloads itself.
            for accepted in (1, 2):
                browser.until(f'document.querySelector("[data-name=accepted]")?.innerText === "{accepted}"')
                page.ask("/report/1")
            browser.until('document.getElementById("state")?.innerText === "as loaded"')
            assert not browser.errors, browser.errors


def curl_asks_the_status_page_as_fpms_is_asked():
    with StatusPage() as page:
        page.ask("/report/1?token=secret-query", "-H", "cookie: secret=cookie")
        page.until(lambda numbers: numbers["requests"]["ended"] == 1)
        for path, form in (("/", "text/html; charset=utf-8"), ("/?full", "text/html; charset=utf-8"),
                           ("/?json", "application/json"), ("/?json&full", "application/json"), ("/json", "application/json"),
                           ("/?openmetrics", OPENMETRICS), ("/metrics", OPENMETRICS)):
            head, body = head_and_body(curl("-i", url(path, page.port)))
            assert head.startswith("http/1.1 200") and f"content-type: {form}\r\n" in head, head
            assert "report/{pages}" in body or form == OPENMETRICS, body
            assert "secret" not in head + body, body
        head, _ = head_and_body(curl("-i", "-H", "accept: application/openmetrics-text", url("/", page.port)))
        assert f"content-type: {OPENMETRICS}\r\n" in head, head


OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PARSE = """
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
assert all(family.documentation for family in families)
print(json.dumps([[s.name, s.labels, s.value] for family in families for s in family.samples]))
"""


def promtool(*args, given=""):
    return subprocess.run(["promtool", *args], input=given, capture_output=True, timeout=60, check=False, text=True)


def as_older_text(metrics):
    """`promtool check metrics` reads the text format before OpenMetrics, where a counter's family is named as its sample."""
    counters = [line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE") and line.endswith(" counter")]
    lines = []
    for line in metrics.splitlines():
        parts = line.split(" ")
        if line.startswith(("# HELP", "# TYPE")) and parts[2] in counters:
            parts[2] += "_total"
        if not line.startswith(("# UNIT", "# EOF")):
            lines.append(" ".join(parts))
    return "\n".join(lines) + "\n"


def prometheus_reads_the_openmetrics():
    """By its own parser and linter, and by that of Python's prometheus_client; and they read what the clients did."""
    with StatusPage() as page:
        for number in range(7):
            page.ask("/signup", "-d", str(number))
        for _ in range(2):
            page.ask("/broken")
        page.until(lambda numbers: numbers["now"]["waiting"] > 0)
        for _ in range(2):
            metrics = curl(url("/metrics", page.port))
            linted = promtool("check", "metrics", given=as_older_text(metrics))
            assert linted.returncode == 0, linted.stdout + linted.stderr
            # Into a database, whose samples have times.
            with tempfile.TemporaryDirectory() as folder:
                file = os.path.join(folder, "metrics")
                with open(file, "w", encoding="utf-8") as timed:
                    for line in metrics.splitlines():
                        timed.write(line + ("" if line.startswith("#") else f" {int(time.time())}") + "\n")
                stored = promtool("tsdb", "create-blocks-from", "openmetrics", file, os.path.join(folder, "blocks"))
                assert stored.returncode == 0, stored.stdout + stored.stderr
            python = os.path.join(os.path.dirname(sys.argv[1]), "..", "..", "venv", "bin", "python")
            parsed = subprocess.run([python, "-c", PARSE], input=metrics, capture_output=True, timeout=60, check=False, text=True)
            assert parsed.returncode == 0, parsed.stderr
            samples = {(name, labels.get("phase") or labels.get("class")): value for name, labels, value in json.loads(parsed.stdout)}
            numbers = page.until(lambda numbers: numbers["requests"]["in_flight"] == 0)
        assert samples["epilogue_pool_requests_total", None] == numbers["requests"]["accepted"] == 9, samples
        assert samples["epilogue_pool_continuations_failed_total", None] == numbers["continuations"]["failed"] == 2, samples
        assert samples["epilogue_pool_bound_max_running", "mail"] == 5, samples
        assert samples["epilogue_pool_in_phase", "waiting"] == 0, samples


def main():
    global PORT, PAGES
    environment = dict(os.environ, PORT="0")
    examples = [sys.argv[1], os.path.join(os.path.dirname(sys.argv[1]), "compression")]
    servers = [subprocess.Popen([example], stdout=subprocess.PIPE, env=environment, text=True) for example in examples]
    passed, faults = 0, []
    try:
        PORT, PAGES = map(port_of, servers)
        checks = [value for key, value in globals().items() if callable(value) and getattr(value, "__module__", "") == "__main__"
                  and key not in HELPERS and all(word in key for word in sys.argv[2:])]
        for check in checks:
            try:
                check()
                passed += 1
                print(f"ok      {check.__name__}")
            except Exception as error:  # noqa: BLE001: whatever goes wrong is a failed check
                faults.append(f"FAILED  {check.__name__}: {type(error).__name__}: {error}")
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=40)
    # At the end, where they are looked for.
    print("\n".join([*faults, f"{passed} passed, {len(faults)} failed"]))
    sys.exit(1 if faults or not passed else 0)


def port_of(server):
    prefix = "listening on http://127.0.0.1:"
    # A log's lines may come before it.
    for line in server.stdout:
        if line.startswith(prefix):
            return int(line.strip()[len(prefix):])
    raise AssertionError("it does not listen")


HELPERS = {"StatusPage", "Proxy", "take_the_readmes_picture", "promtool", "as_older_text", "page_of", "page_url", "works", "port_of", "fresh", "curl", "url", "journal", "names", "at", "status", "head_and_body", "reset", "leave_during_work", "chromium", "example", "main"}

if __name__ == "__main__":
    main()
