#!/usr/bin/env python3
"""Drives the playground from outside: curl, Python's http.client, raw sockets, nginx and Chromium.

Usage: check.py PLAYGROUND, the path of the built example. Loopback only, ports chosen by the system. Each check is a
function whose name says what holds; it asserts, or it fails.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

PORT = 0
COUNT = 0


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
    for _ in range(200):
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
    head, body = head_and_body(curl("-i", url(f"/run?id={name}&close=1&then_ms=2000")))
    took = time.monotonic() - began
    assert "content-length: 64" in head and "connection: close" in head, head
    assert len(body) == 64
    assert took < 1.5, f"the client waited {took:.2f} s for a continuation of 2 s"
    events = journal(name)
    order = ["flushed", "continuation_start", "continuation_end", "hook_start", "hook_end", "ended"]
    assert [event for event in names(events) if event in order] == order, events
    assert at(events, "continuation_end") - at(events, "continuation_start") >= 1_900_000


def the_connection_is_closed_by_the_server_while_the_continuation_runs():
    name = fresh()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", PORT), timeout=10) as client:
        client.sendall(f"GET /run?id={name}&close=1&then_ms=2000 HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        data = b""
        while chunk := client.recv(65536):
            data += chunk
    assert time.monotonic() - began < 1.5, "the end of the connection waited for the continuation"
    assert data.endswith(b"0123456789012345678901234567890123456789012345678901234567890123"), data


def curl_speaks_http_1_0_1_1_and_2():
    for flag, version in (("-0", "http/1.0 200"), ("--http1.1", "http/1.1 200"), ("--http2-prior-knowledge", "http/2 200")):
        name = fresh()
        head, body = head_and_body(curl("-i", flag, url(f"/run?id={name}&close=1&then_ms=50&body=1000")))
        assert head.startswith(version), head
        assert "content-length: 1000" in head and len(body) == 1000, head
        assert ("connection: close" in head) == ("http/2" not in head), head
        assert status(journal(name), "ended") == 0


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
    head, _ = head_and_body(curl("-i", url(f"/run?id={name}&limit_ms=500&work_ms=5000")))
    assert head.startswith("http/1.1 503"), head
    events = journal(name)
    assert status(events, "hook_start") == 2, events
    assert 450_000 < at(events, "handler_dropped") < 1_500_000, events


# === raw sockets ===


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def leave_during_work(query):
    name = fresh()
    client = socket.create_connection(("127.0.0.1", PORT))
    client.sendall(f"GET /run?id={name}&work_ms=2000&{query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    journal(name, "handler_start")
    reset(client)
    return journal(name)


def a_reset_drops_the_handler():
    events = leave_during_work("")
    assert "handler_dropped" in names(events) and "handler_end" not in names(events), events
    assert status(events, "handler_dropped") == 1
    assert at(events, "handler_dropped") - at(events, "aborted") < 50_000, events
    assert at(events, "handler_dropped") < 1_500_000, events


def an_ignored_reset_does_not():
    events = leave_during_work("ignore_abort=1")
    assert "handler_end" in names(events) and status(events, "handler_end") == 1, events


def an_abort_and_then_the_limit_make_status_3():
    events = leave_during_work("ignore_abort=1&limit_ms=1000")
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
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        config = os.path.join(folder, "nginx.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"""
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{PORT}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering on; }} }}
}}
""")
        server = subprocess.Popen([nginx, "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            for query in ("close=1", "chunks=3", "finish_ms=2000"):
                name = fresh()
                began = time.monotonic()
                body = curl(url(f"/run?id={name}&body=3000&then_ms={0 if 'finish' in query else 2000}&{query}", port))
                assert len(body) == 3000
                assert time.monotonic() - began < 1.5, query
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


def main():
    global PORT
    environment = dict(os.environ, PORT="0")
    server = subprocess.Popen([sys.argv[1]], stdout=subprocess.PIPE, env=environment, text=True)
    passed = failed = 0
    try:
        line = server.stdout.readline().strip()
        prefix = "listening on http://127.0.0.1:"
        assert line.startswith(prefix), line
        PORT = int(line[len(prefix):])
        checks = [value for key, value in globals().items() if callable(value) and getattr(value, "__module__", "") == "__main__"
                  and key not in HELPERS]
        for check in checks:
            try:
                check()
                passed += 1
                print(f"ok      {check.__name__}")
            except Exception as error:  # noqa: BLE001: whatever goes wrong is a failed check
                failed += 1
                print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=40)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


HELPERS = {"fresh", "curl", "url", "journal", "names", "at", "status", "head_and_body", "reset", "leave_during_work", "chromium", "main"}

if __name__ == "__main__":
    main()
