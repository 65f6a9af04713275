"""HTTP/1 over a raw socket (RFC 9112, RFC 9110): what is sent, and what came back, byte by byte."""

import socket
import time

NAME = "HTTP/1"
CRLF = b"\r\n"


class Case:
    """One connection: `steps` are bytes to send; `Until(text)` waits for text; `HALF_CLOSE` ends the sending side.

    `want` is what the RFC asks for: the statuses of the responses. `methods` are those of the requests, as far as they
    matter for the framing of the responses.
    """

    def __init__(self, name, *steps, want, methods=()):
        self.name, self.steps, self.want, self.methods = name, steps, want, methods


class Until:
    def __init__(self, text):
        self.text = text


HALF_CLOSE = object()


def request(target="/seen", method="GET", headers=(), body=b"", version="HTTP/1.1", host=True):
    lines = [f"{method} {target} {version}"] + (["host: a.example"] if host else []) + list(headers)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def post(headers, body=b"", target="/seen"):
    return request(target, "POST", headers, body)


def ask(port, case, quiet):
    """The bytes that came, and how the connection ended: `open` when nothing came for `quiet` seconds."""
    data, end = bytearray(), None
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def read(limit, until=None):
            nonlocal end
            deadline = time.monotonic() + limit
            while end is None and not (until and until in data):
                client.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    chunk = client.recv(1 << 20)
                except TimeoutError:
                    return
                except OSError:
                    end = "reset"
                    return
                if not chunk:
                    end = "closed"
                data.extend(chunk)
                if not until:
                    deadline = time.monotonic() + limit

        for step in case.steps:
            if isinstance(step, Until):
                read(5, step.text)
            elif step is HALF_CLOSE:
                client.shutdown(socket.SHUT_WR)
            else:
                client.settimeout(10)
                try:
                    client.sendall(step)
                except OSError:
                    break
        read(quiet)
    return bytes(data), end or "open"


def parse(data, methods, closed):
    """The responses in `data`; raises ValueError where it is not HTTP/1."""
    responses, methods = [], list(methods)
    while data:
        head, found, data = data.partition(CRLF + CRLF)
        if not found:
            raise ValueError(f"no end of the head: {head!r}")
        line, *fields = head.split(CRLF)
        version, status, _ = (line + b" ").split(b" ", 2)
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3:
            raise ValueError(f"not a status line: {line!r}")
        headers = []
        for field in fields:
            name, colon, value = field.partition(b":")
            if not colon or not name or name != name.strip():
                raise ValueError(f"not a header: {field!r}")
            headers.append((name.lower().decode(), value.strip().decode("latin-1")))
        status = int(status)
        response = {"line": line.decode("latin-1"), "status": status, "headers": sorted(headers), "trailers": []}
        if status < 200:
            response["framing"], response["body"] = "none", b""
            responses.append(response)
            continue
        method = methods.pop(0) if methods else "GET"
        named = dict(headers)
        if len([name for name, _ in headers if name in ("content-length", "transfer-encoding")]) > 1:
            raise ValueError(f"two framings: {headers}")
        if method == "HEAD" or status in (204, 304):
            response["framing"], response["body"] = "none", b""
        elif "transfer-encoding" in named:
            response["framing"] = "chunked"
            response["body"], response["trailers"], response["whole"], data = dechunk(data)
        elif "content-length" in named:
            length = int(named["content-length"])
            response["framing"], response["body"], data = "length", data[:length], data[length:]
            response["whole"] = len(response["body"]) == length
        else:
            response["framing"], response["body"], response["whole"], data = "close", data, closed, b""
        responses.append(response)
    return responses


def dechunk(data):
    body = b""
    while True:
        line, found, rest = data.partition(CRLF)
        if not found:
            return body, [], False, b""
        size = int(line.split(b";")[0], 16)
        if size == 0:
            if rest.startswith(CRLF):
                return body, [], True, rest[2:]
            trailers, found, rest = rest.partition(CRLF + CRLF)
            return body, sorted(trailers.decode().split("\r\n")), bool(found), rest
        body, ending, data = body + rest[:size], rest[size:size + 2], rest[size + 2:]
        if len(ending) == 2 and ending != CRLF:
            raise ValueError(f"a chunk without its end: {ending!r}")


def observe(port, case, quiet):
    """What can be compared: all but the date, and whether a close is a FIN or a reset.

    Plain hyper resets a connection that it closes with unread bytes on it, now and then, depending on what has
    arrived; a tracked one lingers, so that the response is read. `reset` is told apart from `closed` only by
    `tests/tls` and `tests/connection`.
    """
    data, end = ask(port, case, quiet)
    closed = end != "open"
    responses = parse(data, case.methods, closed)
    for response in responses:
        response["headers"] = [header for header in response["headers"] if header[0] != "date"]
    return {"responses": responses, "end": "closed" if closed else "open"}


def summary(observed):
    return f"{[response['status'] for response in observed['responses']]}, {observed['end']}"


def verdict(case, observed):
    """How the answer is not what the RFC asks for; None if it is."""
    got = [response["status"] for response in observed["responses"]]
    return None if got == case.want else f"{got}, not {case.want}"


def as_early_closed(observed):
    """What early close leaves alone: it declares the length, and ends the connection after the first response."""
    shaped = []
    for response in observed["responses"]:
        own = ("connection", "content-length", "transfer-encoding")
        headers = [header for header in response["headers"] if header[0] not in own]
        shaped.append({"status": response["status"], "headers": headers, "body": response["body"]})
        if response["status"] >= 200:
            break
    return shaped


CHUNKED = "transfer-encoding: chunked"
KEEP, CLOSE = "connection: keep-alive", "connection: close"
GET = request("/")

CASES = [
    # === what is right ===
    Case("a GET", GET, want=[200]),
    Case("a HEAD", request("/", "HEAD"), want=[200], methods=["HEAD"]),
    Case("a HEAD of a stream", request("/stream", "HEAD"), want=[200], methods=["HEAD"]),
    Case("a HEAD of a 204", request("/empty", "HEAD"), want=[204], methods=["HEAD"]),
    Case("an OPTIONS of nothing there", request("/nowhere", "OPTIONS"), want=[404]),
    Case("a method that no route has", request("/", "DELETE"), want=[405]),
    Case("a method of its own", request("/seen", "FROBNICATE"), want=[200]),
    Case("a stream", request("/stream"), want=[200]),
    Case("a stream for HTTP/1.0", request("/stream", version="HTTP/1.0"), want=[200]),
    Case("trailers, not asked for", request("/trailers"), want=[200]),
    Case("trailers, asked for", request("/trailers", headers=["te: trailers"]), want=[200]),
    Case("a body that breaks off", request("/broken"), want=[]),
    Case("a body that breaks off for HTTP/1.0", request("/broken", version="HTTP/1.0"), want=[]),
    Case("a 204", request("/empty"), want=[204]),
    Case("a 304", request("/same"), want=[304]),
    Case("a redirect", request("/redirect"), want=[302]),
    Case("a large response", request("/large"), want=[200]),
    Case("a GET in pieces", GET[:3], GET[3:17], GET[17:], want=[200]),
    Case("a GET byte by byte", *(bytes([byte]) for byte in GET), want=[200]),
    # === persistence (RFC 9112, section 9.3) ===
    Case("one after the other", GET, Until(b"hello"), GET, want=[200, 200]),
    Case("close asked for", request("/", headers=[CLOSE]), want=[200]),
    Case("close in a list", request("/", headers=["connection: foo, Close"]), want=[200]),
    Case("HTTP/1.0", request("/", version="HTTP/1.0"), want=[200]),
    Case("HTTP/1.0 kept alive", request("/", version="HTTP/1.0", headers=[KEEP]), want=[200]),
    Case("HTTP/1.0 kept alive, a stream", request("/stream", version="HTTP/1.0", headers=[KEEP]), want=[200]),
    Case("after a 204", request("/empty"), Until(b"204"), GET, want=[204, 200]),
    Case("after a HEAD", request("/", "HEAD"), Until(b"\r\n\r\n"), GET, want=[200, 200], methods=["HEAD", "GET"]),
    # === pipelining (section 9.3.2) ===
    Case("three at once", GET + request("/stream") + request("/empty"), want=[200, 200, 204]),
    Case("twenty at once", GET * 20, want=[200] * 20),
    Case("a slow one and one behind it", request("/slow") + GET, Until(b"hello"), want=[200, 200]),
    Case("bodies between", post(["content-length: 3"], b"abc") + post([CHUNKED], b"2\r\nde\r\n0\r\n\r\n") + GET,
         want=[200, 200, 200]),
    Case("nothing after a close", request("/", headers=[CLOSE]) + GET, want=[200]),
    Case("a bad one behind a good one", GET + b"nonsense\r\n\r\n", want=[200, 400]),
    Case("an unread body and one behind it", post(["content-length: 5"], b"abcde", "/unread") + GET, want=[200, 200]),
    Case("an empty line before", CRLF + GET, want=[200]),
    Case("empty lines between", GET + CRLF + CRLF + GET, want=[200, 200]),
    # === half a connection ===
    Case("half-closed at once", GET, HALF_CLOSE, want=[200]),
    Case("half-closed within a head", GET[:10], HALF_CLOSE, want=[]),
    Case("half-closed within a body", post(["content-length: 10"], b"abc"), HALF_CLOSE, want=[200]),
    Case("half-closed without a word", HALF_CLOSE, want=[]),
    # === Expect (RFC 9110, section 10.1.1) ===
    Case("100-continue", post(["content-length: 3", "expect: 100-continue"]), Until(b"100"), b"abc", want=[100, 200]),
    Case("100-continue, in capitals", post(["content-length: 3", "Expect: 100-Continue"]), Until(b"100"), b"abc",
         want=[100, 200]),
    Case("100-continue, chunked", post([CHUNKED, "expect: 100-continue"]), Until(b"100"), b"3\r\nabc\r\n0\r\n\r\n",
         want=[100, 200]),
    Case("100-continue, not read", post(["content-length: 3", "expect: 100-continue"], target="/unread"), want=[200]),
    Case("100-continue, streamed back", post(["content-length: 3", "expect: 100-continue"], target="/echo"),
         Until(b"200"), b"abc", want=[200]),
    Case("100-continue, without a body", request("/", headers=["expect: 100-continue"]), want=[200]),
    Case("100-continue, sent all the same", post(["content-length: 3", "expect: 100-continue"], b"abc"), want=[100, 200]),
    Case("100-continue for HTTP/1.0",
         request("/seen", "POST", ["content-length: 3", "expect: 100-continue"], b"abc", "HTTP/1.0"), want=[200]),
    Case("another expectation", post(["content-length: 3", "expect: tea"], b"abc"), want=[200]),
    # === the target (RFC 9112, section 3.2) ===
    Case("a query", request("/seen?a=b&c=%20d"), want=[200]),
    Case("the absolute form", request("http://b.example/seen?x"), want=[200]),
    Case("the absolute form without a path", request("http://b.example"), want=[200]),
    Case("the asterisk form", request("*", "OPTIONS"), want=[404]),
    Case("the authority form", request("b.example:80", "CONNECT"), want=[404]),
    Case("no target", b"GET  HTTP/1.1\r\nhost: a\r\n\r\n", want=[400]),
    Case("a space in the target", request("/a b"), want=[400]),
    Case("a fragment", request("/seen#x"), want=[200]),
    Case("bytes beyond ASCII in the target", request("/s\xe9"), want=[400]),
    Case("a target of 70,000 bytes", request("/" + "a" * 70_000), want=[414]),
    Case("no host", request("/", host=False), want=[400]),
    Case("two hosts", request("/", headers=["host: b.example"]), want=[400]),
    Case("no host for HTTP/1.0", request("/", version="HTTP/1.0", host=False), want=[200]),
    # === the request line and the headers (sections 3 and 5) ===
    Case("nonsense", b"nonsense\r\n\r\n", want=[400]),
    Case("a TLS hello", bytes.fromhex("160301020001000001fc0303") + bytes(64), want=[400]),
    Case("line feeds alone", GET.replace(CRLF, b"\n"), want=[200]),
    Case("a carriage return alone", b"GET / HTTP/1.1\rhost: a\r\n\r\n", want=[400]),
    Case("HTTP/1.2", request("/", version="HTTP/1.2"), want=[400]),
    Case("HTTP/3.0", request("/", version="HTTP/3.0"), want=[400]),
    Case("a version in small letters", request("/", version="http/1.1"), want=[400]),
    Case("no version (HTTP/0.9)", b"GET /\r\n\r\n", want=[400]),
    Case("tabs in the request line", b"GET\t/\tHTTP/1.1\r\nhost: a\r\n\r\n", want=[400]),
    Case("a method that is no token", request("/", "G@T"), want=[400]),
    Case("obsolete folding", request("/seen", headers=["x-folded: a\r\n b"]), want=[400]),
    Case("folding in the first header", b"GET / HTTP/1.1\r\n host: a\r\n\r\n", want=[400]),
    Case("a space before the colon", request("/", headers=["x-spaced : a"]), want=[400]),
    Case("spaces around a value", request("/seen", headers=["x-value: \t a b \t "]), want=[200]),
    Case("no colon", request("/", headers=["x-nothing"]), want=[400]),
    Case("no name", request("/", headers=[": a"]), want=[400]),
    Case("an empty value", request("/seen", headers=["x-empty:"]), want=[200]),
    Case("a NUL in a value", request("/", headers=["x-nul: a\x00b"]), want=[400]),
    Case("a carriage return in a value", request("/", headers=["x-cr: a\rb"]), want=[400]),
    Case("bytes beyond ASCII in a value", request("/seen", headers=["x-latin: \xe9"]), want=[200]),
    Case("bytes beyond ASCII in a name", request("/", headers=["x-l\xe9: a"]), want=[400]),
    Case("the same header twice", request("/seen", headers=["x-a: 1", "X-A: 2"]), want=[200]),
    Case("99 headers", request("/seen", headers=[f"x-{n}: {n}" for n in range(98)]), want=[200]),
    Case("101 headers", request("/", headers=[f"x-{n}: {n}" for n in range(101)]), want=[431]),
    Case("a header of 500,000 bytes", request("/", headers=["x-long: " + "a" * 500_000]), want=[200]),
    Case("an upgrade that nobody takes", request("/", headers=["connection: upgrade", "upgrade: tea"]), want=[200]),
    Case("an upgrade to h2c", request("/", headers=["connection: upgrade, http2-settings", "upgrade: h2c",
                                                    "http2-settings: AAMAAABkAAQAAP__"]), want=[200]),
    # === the length of a body (section 6.3) ===
    Case("a length", post(["content-length: 3"], b"abc"), want=[200]),
    Case("a length of zero", post(["content-length: 0"]), want=[200]),
    Case("no length", post([]), want=[200]),
    Case("a body on a GET", request("/seen", headers=["content-length: 3"], body=b"abc") + GET, want=[200, 200]),
    Case("the length twice, alike", post(["content-length: 3", "content-length: 3"], b"abc"), want=[200]),
    Case("the length twice, in one line", post(["content-length: 3, 3"], b"abc"), want=[400]),
    Case("two lengths", post(["content-length: 3", "content-length: 4"], b"abcd"), want=[400]),
    Case("a length below zero", post(["content-length: -1"], b"abc"), want=[400]),
    Case("a length with a plus", post(["content-length: +3"], b"abc"), want=[400]),
    Case("a length in hexadecimal", post(["content-length: 0x3"], b"abc"), want=[400]),
    Case("a length that is no number", post(["content-length: three"], b"abc"), want=[400]),
    Case("an empty length", post(["content-length:"], b"abc"), want=[400]),
    Case("a length past 2^64", post(["content-length: 18446744073709551616"], b"abc"), want=[400]),
    Case("both length and chunks", post(["content-length: 3", CHUNKED], b"3\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("both chunks and length", post([CHUNKED, "content-length: 3"], b"3\r\nabc\r\n0\r\n\r\n"), want=[200]),
    # === chunks (section 7.1) ===
    Case("chunks", post([CHUNKED], b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") + GET, want=[200, 200]),
    Case("chunks, byte by byte", post([CHUNKED]), *(bytes([byte]) for byte in b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"),
         want=[200]),
    Case("chunked, in capitals", post(["transfer-encoding: Chunked"], b"3\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's extension", post([CHUNKED], b"3;name=value\r\nabc\r\n0;last\r\n\r\n"), want=[200]),
    Case("trailers in a request", post([CHUNKED], b"3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n") + GET, want=[200, 200]),
    Case("a trailer that is none", post([CHUNKED], b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n"), want=[200]),
    Case("a chunk's size with zeros before", post([CHUNKED], b"00003\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's size in capitals", post([CHUNKED], b"A\r\n0123456789\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's size that is no number", post([CHUNKED], b"x\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's size with a minus", post([CHUNKED], b"-3\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's size past 2^64", post([CHUNKED], b"10000000000000000\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk longer than its size", post([CHUNKED], b"2\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("a chunk's size with line feeds alone", post([CHUNKED], b"3\nabc\n0\n\n"), want=[200]),
    Case("chunks that break off", post([CHUNKED], b"3\r\nab"), HALF_CLOSE, want=[200]),
    Case("another coding", post(["transfer-encoding: gzip"], b"abc"), want=[400]),
    Case("chunks within another coding", post(["transfer-encoding: gzip, chunked"], b"3\r\nabc\r\n0\r\n\r\n"), want=[200]),
    Case("another coding after the chunks", post(["transfer-encoding: chunked, gzip"], b"3\r\nabc\r\n0\r\n\r\n"), want=[400]),
    Case("identity", post(["transfer-encoding: identity", "content-length: 3"], b"abc"), want=[400]),
    Case("chunks for HTTP/1.0", request("/seen", "POST", [CHUNKED], b"3\r\nabc\r\n0\r\n\r\n", "HTTP/1.0"), want=[400]),
    Case("a coding with a vertical tab", post(["transfer-encoding: \x0bchunked"], b"3\r\nabc\r\n0\r\n\r\n"), want=[400]),
    # === bodies streamed back ===
    Case("an echo by length", post(["content-length: 5"], b"abcde", "/echo"), want=[200]),
    Case("an echo of chunks", post([CHUNKED], b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "/echo"), want=[200]),
    Case("an echo that breaks off", post([CHUNKED], b"3\r\nabc\r\n", "/echo"), Until(b"abc"), HALF_CLOSE, want=[200]),
    Case("an echo of a megabyte", post(["content-length: 1048576"], b"x" * 1048576, "/echo") + GET, want=[200, 200]),
]
