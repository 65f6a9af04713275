"""HTTP/2 frame by frame (RFC 9113), with PyPI's hyperframe and hpack: the sections that h2spec checks, in its order."""

import socket
import struct
import time

from hpack import Decoder
from hyperframe import frame as frames

NAME = "HTTP/2"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Error codes (section 7).
NO, PROTOCOL, INTERNAL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION, CALM = 0, 1, 2, 3, 5, 6, 7, 9, 11
CODES = dict(enumerate(("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
                        "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
                        "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED")))


class Case:
    """One connection. `steps` are bytes of frames, or callables that are given the client.

    `want`: `Answer(...)`, `Fault(...)`, or a list of those, any of which will do.
    """

    def __init__(self, name, *steps, want, preface=True):
        self.name, self.steps, self.want, self.preface = name, steps, want, preface


class Fault:
    """An error of the connection (GOAWAY with the code, or the end), or, with `stream`, of the stream."""

    def __init__(self, *codes, stream=False):
        self.codes, self.stream = codes, stream

    def matches(self, got):
        if got["goaway"] is not None and got["goaway"][1] in self.codes:
            return True
        if any(stream.get("reset") in self.codes for stream in got["streams"].values()) and self.stream:
            return True
        # A server may close without a GOAWAY (section 5.4.1: SHOULD).
        return got["end"] == "closed" and got["goaway"] is None

    def __repr__(self):
        return " or ".join(CODES[code] for code in self.codes)


class Answer:
    """The connection lives, and these streams are answered so: {stream: (status, length of the body)}."""

    def __init__(self, streams=None):
        self.streams = streams or {}

    def matches(self, got):
        if got["goaway"] is not None or got["end"] == "closed" or not got["pong"]:
            return False
        for number, (status, length) in self.streams.items():
            stream = got["streams"].get(number, {})
            if stream.get("status") != status or stream.get("length") != length or not stream.get("ended"):
                return False
        return True

    def __repr__(self):
        return f"an answer {self.streams}"


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.end = b"", None
        self.decoder = Decoder()
        self.streams, self.goaway, self.pong, self.settings, self.acks, self.pings = {}, None, False, {}, 0, []
        self.head = b""

    def send(self, data):
        self.socket.settimeout(10)
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # What the server said before that is still to be read.

    def read(self, limit, until=None):
        """Reads until `until` says so, the end, or `limit` seconds without a byte."""
        deadline = time.monotonic() + limit
        while self.end is None and not (until and until(self)):
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                chunk = self.socket.recv(1 << 20)
            except TimeoutError:
                return
            except OSError:
                chunk = b""
            if not chunk:
                self.end = "closed"
            self.buffer += chunk
            self.take_frames()
            if not until:
                deadline = time.monotonic() + limit

    def take_frames(self):
        while len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + length:
                return
            frame, _ = frames.Frame.parse_frame_header(memoryview(self.buffer[:9]))
            frame.parse_body(memoryview(self.buffer[9:9 + length]))
            self.buffer = self.buffer[9 + length:]
            self.take(frame)

    def take(self, frame):
        stream = self.streams.setdefault(frame.stream_id, {"length": 0}) if frame.stream_id else None
        if isinstance(frame, (frames.HeadersFrame, frames.ContinuationFrame)):
            self.head += frame.data
            if "END_HEADERS" in frame.flags:
                headers = [(str(name), str(value)) for name, value in self.decoder.decode(self.head)]
                self.head = b""
                self.take_head(stream, headers)
            if "END_STREAM" in frame.flags:
                stream["ended"] = True
        elif isinstance(frame, frames.DataFrame):
            stream["length"] += len(frame.data)
            stream["data"] = stream.get("data", b"") + frame.data
            if stream.get("ended"):
                raise ValueError("DATA behind END_STREAM")
            if "END_STREAM" in frame.flags:
                stream["ended"] = True
        elif isinstance(frame, frames.RstStreamFrame):
            stream["reset"] = frame.error_code
        elif isinstance(frame, frames.GoAwayFrame):
            self.goaway = (frame.last_stream_id, frame.error_code)
        elif isinstance(frame, frames.PingFrame) and "ACK" in frame.flags:
            self.pong |= frame.opaque_data == b"barrier!"
            if frame.opaque_data != b"barrier!":
                self.pings.append(frame.opaque_data)
        elif isinstance(frame, frames.SettingsFrame):
            if "ACK" in frame.flags:
                self.acks += 1
            else:
                self.settings.update(frame.settings)

    @staticmethod
    def take_head(stream, headers):
        if "status" in stream:
            stream["trailers"] = headers
        elif headers[0][1].startswith("1"):
            stream.setdefault("informational", []).append(headers)
        else:
            stream["status"] = int(headers[0][1])
            stream["headers"] = sorted(header for header in headers if header[0] not in (":status", "date"))


def observe(port, case, quiet):
    client = Client(port)
    with client.socket:
        if case.preface:
            client.send(PREFACE + settings())
        for step in case.steps:
            if callable(step):
                step(client)
            else:
                client.send(step)
        client.send(raw(6, 0, 0, b"barrier!"))
        client.read(quiet)
        return {"streams": {number: stream for number, stream in
                            client.streams.items() if stream != {"length": 0}},
                "goaway": client.goaway, "end": client.end or "open", "pong": client.pong, "pings": client.pings,
                "acks": client.acks, "settings": client.settings}


def summary(got):
    """Each stream in a word, and how the connection is."""
    def word(stream):
        said = f"{stream['status']}" if "status" in stream else ""
        return said + (f" {CODES[stream['reset']]}" if "reset" in stream else "" if stream.get("ended") else " open")

    streams = ", ".join(f"{number}: {word(stream)}" for number, stream in sorted(got["streams"].items())[:3])
    goaway = f"GOAWAY {CODES.get(got['goaway'][1])}, " if got["goaway"] else ""
    return f"{streams or 'nothing'}; {goaway}{got['end']}"


def verdict(case, got):
    """How the answer is not what the RFC asks for; None if it is."""
    wants = case.want if isinstance(case.want, list) else [case.want]
    if any(want.matches(got) for want in wants):
        return None
    return f"{summary(got)}, not {' or '.join(map(repr, wants))}"


def as_early_closed(got):
    """What early close leaves alone: it declares the length."""
    streams = {}
    for number, stream in got["streams"].items():
        headers = [header for header in stream.get("headers", []) if header[0] != "content-length"]
        streams[number] = {**stream, "headers": headers}
    return {**got, "streams": streams}


# === frames ===


def raw(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(*pairs, flags=0, stream=0):
    return raw(4, flags, stream, b"".join(struct.pack(">HI", *pair) for pair in pairs))


END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 0x20


def block(method="GET", path="/", extra=(), scheme="http", authority="a.example"):
    pairs = [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority), *extra]
    return encode(pairs)


def encode(pairs):
    # Literals without indexing: each block stands for itself.
    out = b""
    for name, value in pairs:
        name, value = name.encode("latin-1"), value.encode("latin-1")
        out += b"\x00" + integer(len(name)) + name + integer(len(value)) + value
    return out


def integer(value):
    if value < 127:
        return bytes([value])
    value, out = value - 127, b"\x7f"
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def headers(stream, payload, end=True, flags=END_HEADERS):
    return raw(1, flags | (END_STREAM if end else 0), stream, payload)


def get(stream, path="/"):
    return headers(stream, block(path=path))


def post(stream, path="/seen", extra=()):
    return headers(stream, block("POST", path, extra), end=False)


def data(stream, payload, end=True, flags=0):
    return raw(0, flags | (END_STREAM if end else 0), stream, payload)


def reset(stream, code=8):
    return raw(3, 0, stream, struct.pack(">I", code))


def window(stream, by):
    return raw(8, 0, stream, struct.pack(">I", by))


def continuation(stream, payload, flags=END_HEADERS):
    return raw(9, flags, stream, payload)


def until(found):
    """A step that waits until the client has seen what `found` looks for."""
    return lambda client: client.read(5, found)


def ended(stream):
    return until(lambda client: client.streams.get(stream, {}).get("ended"))


