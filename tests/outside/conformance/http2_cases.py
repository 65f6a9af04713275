"""The cases of RFC 9113 and RFC 7541, section by section."""

import struct

from http2 import (CALM, CLOSED, COMPRESSION, END_HEADERS, END_STREAM, FLOW, INTERNAL, PADDED, PREFACE, PRIORITY, PROTOCOL,
                   REFUSED, SIZE, Answer, Case, Fault, block, continuation, data, encode, ended, get, headers, post,
                   raw, reset, settings, until, window)

OK = Answer({1: (200, 5)})
LIVES = Answer()
PRIORITY_OF = struct.Struct(">IB").pack


def no_more_acks(count):
    return until(lambda client: client.acks >= count)


def with_field(*pairs):
    return headers(1, block(extra=pairs))


def bad_head(*pairs):
    return headers(1, encode(pairs))


ALL = ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.example"))


def without(name):
    return [pair for pair in ALL if pair[0] != name]


MALFORMED = Fault(PROTOCOL, stream=True)
SETTLED = until(lambda client: client.settings and client.acks)

CASES = [
    # === 3.4, the preface ===
    Case("3.4 a preface, a GET", get(1), want=OK),
    Case("3.4 an invalid preface", b"INVALID CONNECTION PREFACE\r\n\r\n", want=Fault(PROTOCOL), preface=False),
    Case("3.4 a preface without SETTINGS", PREFACE, get(1), want=Fault(PROTOCOL), preface=False),
    # === 4.1, the frame ===
    Case("4.1 a frame of an unknown type", raw(0x16, 0, 0, b"unknown!"), get(1), want=OK),
    Case("4.1 undefined flags", raw(6, 0x16, 0, b"12345678"), get(1), want=OK),
    Case("4.1 the reserved bit", raw(6, 0, 0x80000000, b"12345678"), get(1), want=OK),
    # === 4.2, its size ===
    Case("4.2 DATA of 2^14 bytes", post(1, "/echo"), data(1, bytes(16384)), want=Answer({1: (200, 16384)})),
    Case("4.2 DATA past the size", post(1, "/echo"), data(1, bytes(16385)), want=Fault(SIZE, stream=True)),
    Case("4.2 HEADERS past the size", headers(1, block(extra=[("x-long", "a" * 16384)])), want=Fault(SIZE)),
    # === 4.3, field blocks ===
    Case("4.3 a block that cannot be decoded", headers(1, b"\x40"), want=Fault(COMPRESSION)),
    Case("4.3 PRIORITY within a block", headers(1, block(), flags=0), raw(2, 0, 1, PRIORITY_OF(0, 255)),
         continuation(1, encode([("x-a", "b")])), want=Fault(PROTOCOL)),
    Case("4.3 another stream's HEADERS within a block", headers(1, block(), flags=0), get(3), want=Fault(PROTOCOL)),
    # === 5.1, the states of a stream ===
    Case("5.1 idle: DATA", data(1, b"test"), want=Fault(PROTOCOL)),
    Case("5.1 idle: RST_STREAM", reset(1), want=Fault(PROTOCOL)),
    Case("5.1 idle: WINDOW_UPDATE", window(1, 100), want=Fault(PROTOCOL)),
    Case("5.1 idle: CONTINUATION", continuation(1, block()), want=Fault(PROTOCOL)),
    Case("5.1 half-closed: DATA", get(1, "/slow"), data(1, b"test"), want=Fault(CLOSED, stream=True)),
    Case("5.1 half-closed: HEADERS", get(1, "/slow"), get(1), want=Fault(CLOSED, stream=True)),
    Case("5.1 half-closed: CONTINUATION", get(1, "/slow"), continuation(1, block()), want=Fault(CLOSED, PROTOCOL)),
    Case("5.1 half-closed: PRIORITY and WINDOW_UPDATE", get(1, "/slow"), raw(2, 0, 1, PRIORITY_OF(0, 1)), window(1, 1),
         ended(1), want=Answer({1: (200, 0)})),
    Case("5.1 reset: DATA", post(1), reset(1), data(1, b"test"), want=Fault(CLOSED, stream=True)),
    Case("5.1 reset: HEADERS", post(1), reset(1), get(1), want=Fault(CLOSED, stream=True)),
    Case("5.1 reset: CONTINUATION", post(1), reset(1), continuation(1, block()), want=Fault(CLOSED, PROTOCOL)),
    Case("5.1 ended: DATA", get(1), ended(1), data(1, b"test"), want=Fault(CLOSED, stream=True)),
    Case("5.1 ended: HEADERS", get(1), ended(1), get(1), want=Fault(CLOSED, stream=True)),
    Case("5.1 ended: CONTINUATION", get(1), ended(1), continuation(1, block()), want=Fault(CLOSED, PROTOCOL)),
    Case("5.1 ended: WINDOW_UPDATE, PRIORITY, RST_STREAM", get(1), ended(1), window(1, 1), raw(2, 0, 1, PRIORITY_OF(0, 1)),
         reset(1), get(3), want=Answer({1: (200, 5), 3: (200, 5)})),
    Case("5.1.1 an even number", get(2), want=Fault(PROTOCOL)),
    Case("5.1.1 a number below the last", get(5), ended(5), get(3), want=Fault(PROTOCOL)),
    Case("5.1.2 more streams than are allowed", SETTLED, lambda client: client.send(b"".join(
        get(1 + 2 * n, "/slow") for n in range(client.settings.get(3, 100) + 1))),
         want=Fault(PROTOCOL, REFUSED, stream=True)),
    Case("5.1.2 as many streams as are allowed", SETTLED, lambda client: client.send(b"".join(
        get(1 + 2 * n) for n in range(client.settings.get(3, 100)))), ended(199), want=Answer({399: (200, 5)})),
    Case("5.3.1 HEADERS that depend on themselves", headers(1, PRIORITY_OF(1, 255) + block(), flags=END_HEADERS | PRIORITY),
         want=[MALFORMED, OK]),
    Case("5.3.1 PRIORITY that depends on itself", raw(2, 0, 3, PRIORITY_OF(3, 255)), get(1), want=[MALFORMED, OK]),
    Case("5.4.1 an error of the connection ends it", raw(6, 0, 1, b"12345678"), want=Fault(PROTOCOL)),
    Case("5.5 an unknown frame on a stream", post(1, "/echo"), raw(0xf0, 0, 1, b"x"), data(1, b"hello"), want=OK),
    Case("5.5 an unknown frame within a block", headers(1, block(), flags=0), raw(0xf0, 0, 0, b"x"),
         continuation(1, b""), want=Fault(PROTOCOL)),
    # === 6.1, DATA ===
    Case("6.1 DATA on stream 0", data(0, b"test"), want=Fault(PROTOCOL)),
    Case("6.1 padded", post(1, "/echo"), data(1, b"\x06hello" + bytes(6), flags=PADDED), want=OK),
    Case("6.1 padding as long as the frame", post(1, "/echo"), data(1, b"\x06hello", flags=PADDED), want=Fault(PROTOCOL)),
    Case("6.1 empty DATA", post(1, "/echo"), data(1, b"", end=False) * 5, data(1, b"hello"), want=OK),
    # === 6.2, HEADERS ===
    Case("6.2 HEADERS and CONTINUATION", headers(1, block()[:9], flags=0), continuation(1, block()[9:]), want=OK),
    Case("6.2 HEADERS on stream 0", get(0), want=Fault(PROTOCOL)),
    Case("6.2 padded", headers(1, b"\x02" + block() + bytes(2), flags=END_HEADERS | PADDED), want=OK),
    Case("6.2 padding as long as the frame", headers(1, b"\xff" + block(), flags=END_HEADERS | PADDED), want=Fault(PROTOCOL)),
    Case("6.2 with priority", headers(1, PRIORITY_OF(0, 5) + block(), flags=END_HEADERS | PRIORITY), want=OK),
    # === 6.3, PRIORITY ===
    Case("6.3 PRIORITY on stream 0", raw(2, 0, 0, PRIORITY_OF(1, 1)), want=[Fault(PROTOCOL)]),
    Case("6.3 PRIORITY of 4 bytes", post(1), raw(2, 0, 1, bytes(4)), want=Fault(SIZE, stream=True)),
    Case("6.3 PRIORITY of an idle stream", raw(2, 0, 7, PRIORITY_OF(0, 1)), get(1), want=OK),
    # === 6.4, RST_STREAM ===
    Case("6.4 RST_STREAM on stream 0", reset(0), want=Fault(PROTOCOL)),
    Case("6.4 RST_STREAM of 3 bytes", post(1), raw(3, 0, 1, bytes(3)), want=Fault(SIZE)),
    Case("6.4 the others live on", get(1, "/slow"), reset(1), get(3), want=Answer({3: (200, 5)})),
    # === 6.5, SETTINGS ===
    Case("6.5 an acknowledgement with a payload", settings((3, 1), flags=1), want=Fault(SIZE)),
    Case("6.5 SETTINGS on a stream", settings((3, 1), stream=1), want=Fault(PROTOCOL)),
    Case("6.5 SETTINGS of 3 bytes", raw(4, 0, 0, bytes(3)), want=Fault(SIZE)),
    Case("6.5.2 ENABLE_PUSH of 2", settings((2, 2)), want=Fault(PROTOCOL)),
    Case("6.5.2 a window past 2^31-1", settings((4, 1 << 31)), want=Fault(FLOW)),
    Case("6.5.2 frames below 2^14", settings((5, 16383)), want=Fault(PROTOCOL)),
    Case("6.5.2 frames past 2^24-1", settings((5, 1 << 24)), want=Fault(PROTOCOL)),
    Case("6.5.2 an unknown setting", settings((0xff, 1)), get(1), want=OK),
    Case("6.5.3 the last value counts", settings((4, 100), (4, 1)), get(1), until(lambda c: c.streams[1]["length"] if 1 in c.streams else 0),
         window(1, 4), want=OK),
    Case("6.5.3 each is acknowledged", settings() * 3, no_more_acks(4), want=LIVES),
    # === 6.6, PUSH_PROMISE ===
    Case("6.6 a client's PUSH_PROMISE", raw(5, END_HEADERS, 1, struct.pack(">I", 2) + block()), want=Fault(PROTOCOL)),
    # === 6.7, PING ===
    Case("6.7 a PING is answered", raw(6, 0, 0, b"12345678") * 3, want=LIVES),
    Case("6.7 an acknowledgement is not", raw(6, 1, 0, b"12345678"), want=LIVES),
    Case("6.7 PING on a stream", raw(6, 0, 1, b"12345678"), want=Fault(PROTOCOL)),
    Case("6.7 PING of 6 bytes", raw(6, 0, 0, bytes(6)), want=Fault(SIZE)),
    # === 6.8, GOAWAY ===
    Case("6.8 GOAWAY on a stream", raw(7, 0, 1, bytes(8)), want=Fault(PROTOCOL)),
    Case("6.8 GOAWAY while a request runs", get(1, "/slow"), raw(7, 0, 0, bytes(8)), ended(1),
         want=[Answer({1: (200, 0)}), Fault(0)]),
    # === 6.9, WINDOW_UPDATE ===
    Case("6.9 by 0, of the connection", window(0, 0), want=Fault(PROTOCOL)),
    Case("6.9 by 0, of a stream", post(1), window(1, 0), want=MALFORMED),
    Case("6.9 of 3 bytes", raw(8, 0, 0, bytes(3)), want=Fault(SIZE)),
    Case("6.9 of 3 bytes, of a stream", post(1), raw(8, 0, 1, bytes(3)), want=Fault(SIZE)),
    Case("6.9.1 a window of 1", settings((4, 1)), get(1), until(lambda c: c.streams.get(1, {}).get("length")), want=LIVES),
    Case("6.9.1 a window of 0, opened byte by byte", settings((4, 0)), get(1), *[window(1, 1)] * 5, ended(1), want=OK),
    Case("6.9.1 the connection's past 2^31-1", window(0, (1 << 31) - 1), want=Fault(FLOW)),
    Case("6.9.1 a stream's past 2^31-1", post(1), window(1, (1 << 31) - 1), want=Fault(FLOW, stream=True)),
    Case("6.9.1 a response waits for the connection's window", get(1, "/large"),
         until(lambda c: c.streams.get(1, {}).get("length") == 65535), want=LIVES),
    Case("6.9.1 and goes on when it opens", get(1, "/large"), until(lambda c: c.streams.get(1, {}).get("length") == 65535),
         window(0, 1 << 20) + window(1, 1 << 20), ended(1), want=Answer({1: (200, 262144)})),
    Case("6.9.2 a window opened by SETTINGS", settings((4, 0)), get(1), settings((4, 5)), ended(1), want=OK),
    Case("6.9.2 a window below zero", settings((4, 3)), get(1), until(lambda c: c.streams.get(1, {}).get("length") == 3),
         settings((4, 2)), window(1, 3), ended(1), want=OK),
    # === 6.10, CONTINUATION ===
    Case("6.10 several", headers(1, block()[:9], flags=0), continuation(1, block()[9:20], 0), continuation(1, block()[20:], 0),
         continuation(1, b""), want=OK),
    Case("6.10 a flood", headers(1, block()[:9], flags=0), *(continuation(1, block()[n:n + 1], 0) for n in range(9, len(block()))),
         continuation(1, b""), want=[OK, Fault(CALM)]),
    Case("6.10 then something else", headers(1, block(), flags=0), continuation(1, b"", 0), data(1, b"x"), want=Fault(PROTOCOL)),
    Case("6.10 on stream 0", headers(1, block(), flags=0), continuation(0, b""), want=Fault(PROTOCOL)),
    Case("6.10 behind the end of a block", post(1), continuation(1, encode([("x-a", "b")])), want=Fault(PROTOCOL)),
    Case("6.10 behind DATA", post(1), data(1, b"x", end=False), continuation(1, encode([("x-a", "b")])), want=Fault(PROTOCOL)),
    # === 7, unknown error codes ===
    Case("7 GOAWAY with an unknown code", raw(7, 0, 0, struct.pack(">II", 0, 0xff)), want=[LIVES, Fault(0, PROTOCOL)]),
    Case("7 RST_STREAM with an unknown code", post(1), reset(1, 0xff), get(3), want=Answer({3: (200, 5)})),
    # === 8.1, messages ===
    Case("8.1 second HEADERS without END_STREAM", post(1), headers(1, encode([("x-a", "b")]), end=False), want=MALFORMED),
    Case("8.1 trailers", post(1), data(1, b"x", end=False), headers(1, encode([("x-sum", "42")])), ended(1), want=LIVES),
    Case("8.1 trailers with a pseudo-header", post(1), headers(1, encode([(":method", "GET")])), want=MALFORMED),
    Case("8.1.1 a length too long", headers(1, block("POST", "/seen", [("content-length", "9")]), end=False), data(1, b"test"),
         want=MALFORMED),
    Case("8.1.1 a length too short", headers(1, block("POST", "/seen", [("content-length", "1")]), end=False), data(1, b"test"),
         want=MALFORMED),
    Case("8.1.1 a length in pieces, too short", headers(1, block("POST", "/seen", [("content-length", "1")]), end=False),
         data(1, b"te", end=False), data(1, b"st"), want=MALFORMED),
    Case("8.1.1 a length and no body", headers(1, block("POST", "/seen", [("content-length", "1")])), want=MALFORMED),
    # === 8.2, fields ===
    Case("8.2.1 a name in capitals", with_field(("X-TEST", "a")), want=MALFORMED),
    Case("8.2.1 a name with a space", with_field(("x test", "a")), want=MALFORMED),
    Case("8.2.1 an empty name", with_field(("", "a")), want=MALFORMED),
    Case("8.2.1 a line feed in a value", with_field(("x-test", "a\nb")), want=MALFORMED),
    Case("8.2.1 a NUL in a value", with_field(("x-test", "a\0b")), want=MALFORMED),
    Case("8.2.1 bytes beyond ASCII in a value", with_field(("x-test", "\xe9")), want=OK),
    Case("8.2.2 connection", with_field(("connection", "keep-alive")), want=MALFORMED),
    Case("8.2.2 keep-alive", with_field(("keep-alive", "5")), want=MALFORMED),
    Case("8.2.2 transfer-encoding", with_field(("transfer-encoding", "chunked")), want=MALFORMED),
    Case("8.2.2 upgrade", with_field(("upgrade", "tea")), want=MALFORMED),
    Case("8.2.2 te: trailers", with_field(("te", "trailers")), want=OK),
    Case("8.2.2 another te", with_field(("te", "trailers, deflate")), want=MALFORMED),
    Case("8.2.3 cookies in crumbs", headers(1, block(path="/seen", extra=[("cookie", "a=b"), ("cookie", "c=d")])), ended(1), want=LIVES),
    # === 8.3, pseudo-headers ===
    Case("8.3 an unknown one", with_field((":test", "a")), want=MALFORMED),
    Case("8.3 one of responses", with_field((":status", "200")), want=MALFORMED),
    Case("8.3 one behind a field", bad_head(*ALL[:3], ("x-test", "a"), ALL[3]), want=MALFORMED),
    Case("8.3.1 an empty path", bad_head(*without(":path"), (":path", "")), want=MALFORMED),
    Case("8.3.1 a path that is none", headers(1, block(path="nowhere")), want=MALFORMED),
    Case("8.3.1 no method", bad_head(*without(":method")), want=MALFORMED),
    Case("8.3.1 no scheme", bad_head(*without(":scheme")), want=MALFORMED),
    Case("8.3.1 no path", bad_head(*without(":path")), want=MALFORMED),
    Case("8.3.1 no authority, but a host", headers(1, encode([*without(":authority"), ("host", "a.example")])), want=OK),
    Case("8.3.1 a method twice", bad_head(ALL[0], *ALL), want=MALFORMED),
    Case("8.3.1 a scheme twice", bad_head(ALL[1], *ALL), want=MALFORMED),
    Case("8.3.1 a path twice", bad_head(ALL[2], *ALL), want=MALFORMED),
    Case("8.3.1 an authority twice", bad_head(ALL[3], *ALL), want=MALFORMED),
    Case("8.3.1 the asterisk", headers(1, block("OPTIONS", "*")), want=Answer({1: (404, 0)})),
    Case("8.5 CONNECT", bad_head((":method", "CONNECT"), (":authority", "b.example:80")), want=Answer({1: (404, 0)})),
    Case("8.5 CONNECT with a path", bad_head((":method", "CONNECT"), *ALL[1:]), want=MALFORMED),
    Case("8.5 extended CONNECT (RFC 8441)", headers(1, encode([(":method", "CONNECT"), (":protocol", "tea"), *ALL[1:]]), end=False),
         until(lambda c: c.streams.get(1, {}).get("status")), want=Answer()),
    # === RFC 7541 ===
    Case("HPACK 2.3.3 an index past the table", headers(1, block() + b"\xff\xff\x7f"), want=Fault(COMPRESSION)),
    Case("HPACK 4.2 a size update behind fields", headers(1, block() + b"\x20"), want=Fault(COMPRESSION)),
    Case("HPACK 5.2 padding past 7 bits", headers(1, block() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"), want=Fault(COMPRESSION)),
    Case("HPACK 5.2 padding with zeros", headers(1, block() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"), want=Fault(COMPRESSION)),
    Case("HPACK 5.2 the end-of-string symbol", headers(1, block() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"),
         want=Fault(COMPRESSION)),
    Case("HPACK 6.1 the index 0", headers(1, block() + b"\x80"), want=Fault(COMPRESSION)),
    Case("HPACK 6.3 a table past the allowed", headers(1, b"\x3f\xff\xff\x7f" + block()), want=Fault(COMPRESSION)),
    # === exchanges as clients have them ===
    Case("a HEAD", headers(1, block("HEAD")), want=Answer({1: (200, 0)})),
    Case("a HEAD of a large response", headers(1, block("HEAD", "/large")), want=Answer({1: (200, 0)})),
    Case("a HEAD of a 204", headers(1, block("HEAD", "/empty")), want=Answer({1: (204, 0)})),
    Case("a HEAD of a stream", headers(1, block("HEAD", "/stream")), want=Answer({1: (200, 0)})),
    Case("a stream", get(1, "/stream"), ended(1), want=Answer({1: (200, 13)})),
    Case("a response with trailers", get(1, "/trailers"), ended(1), want=Answer({1: (200, 4)})),
    Case("a response that breaks off", get(1, "/broken"), want=Fault(INTERNAL, stream=True)),
    Case("a 204", get(1, "/empty"), want=Answer({1: (204, 0)})),
    Case("a 304", get(1, "/same"), want=Answer({1: (304, 0)})),
    Case("a 404", get(1, "/nowhere"), want=Answer({1: (404, 0)})),
    Case("a POST that is not read", post(1, "/unread"), data(1, bytes(16384)), ended(1), want=Answer({1: (200, 8)})),
    Case("a POST that is not read, and never ends", post(1, "/unread"), ended(1), want=Answer({1: (200, 8)})),
    Case("a POST, 100-continue", post(1, "/echo", [("expect", "100-continue")]), data(1, b"hello"), ended(1), want=OK),
    Case("an echo in both directions", post(1, "/echo"), until(lambda c: c.streams.get(1, {}).get("status")), data(1, b"he", end=False),
         until(lambda c: c.streams[1]["length"] == 2), data(1, b"llo"), ended(1), want=OK),
    Case("an echo whose request is cancelled", post(1, "/echo"), data(1, b"he", end=False),
         until(lambda c: c.streams.get(1, {}).get("length") == 2), reset(1), get(3), ended(3), want=Answer({3: (200, 5)})),
    Case("a hundred at once", b"".join(get(1 + 2 * n) for n in range(100)), ended(199), want=Answer({1: (200, 5), 199: (200, 5)})),
    Case("what the handler sees", headers(1, block("POST", "/seen?a=b", [("x-a", "1"), ("x-a", "2")]), end=False), data(1, b"abc"),
         ended(1), want=LIVES),
]
