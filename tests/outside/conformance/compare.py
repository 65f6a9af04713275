#!/usr/bin/env python3
"""Protocol conformance: the same bytes go to plain axum and to this crate's servers, and the answers must not differ.

Usage: compare.py SERVER, the path of the built example `conformance`. Needs PyPI's `h2`. Each case is one connection.

- What plain axum answers is held against the RFC. Where hyper takes another way than the RFC asks for, the case is listed
  in `DEVIATIONS`: so that list fails too when hyper changes.
- What ours answer is held against plain axum's, to the byte, but for the `date` header. Early close is to differ: it
  declares lengths, and closes HTTP/1 connections; the rest is compared.
- Where an answer depends on a race, the case is listed in `RACES`, with the servers that can lose it, what the loss looks
  like (`null`: as the RFC allows), and the reason. Of a server that has lost no more is asked; when plain axum has lost,
  ours are held against the RFC. Other races are rare: ours have to answer as plain axum has answered in any of the tries.
- Where ours is meant to differ, the case is listed in `DIFFERENCES`, with the servers, what they answer, and the reason.
"""

import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import http1
import http2
import http2_cases

OURS = ("layers", "listener", "both", "finish", "early_close")
# Seconds without a byte after which an answer counts as complete; a difference is looked at again with more patience.
QUIET = (0.25, 0.25, 0.5, 1.0, 3.0)
KNOWN = json.loads((pathlib.Path(__file__).parent / "known.json").read_text(encoding="utf-8"))
DEVIATIONS, DIFFERENCES, RACES = KNOWN["deviations"], KNOWN["differences"], KNOWN["races"]


def shape(room, name, observed):
    return room.as_early_closed(observed) if name == "early_close" else observed


def observed(room, port, case, quiet):
    try:
        return room.observe(port, case, quiet)
    except ValueError as error:
        return {"malformed": str(error)}


def check(room, ports, case):
    """The faults of one case, as sentences."""
    name = f"{room.NAME}: {case.name}"
    race, meant = RACES.get(name, {}), DIFFERENCES.get(name, {})
    faults, answers = [], []
    for quiet in QUIET:
        faults = []
        for _ in range(10):
            plain = observed(room, ports["plain"], case, quiet)
            got = None if "malformed" in plain else room.verdict(case, plain)
            lost = race and got == race["lost"]
            if not lost or got is None:
                break
        answers.append(plain)
        if "malformed" in plain:
            faults.append(f"plain axum: {plain}")
        if got != DEVIATIONS.get(name) and not lost:
            faults.append(f"plain axum: known to deviate as {DEVIATIONS.get(name)!r}, and does as {got!r}")
        for server in OURS:
            ours = observed(room, ports[server], case, quiet)
            verdict = None if "malformed" in ours else room.verdict(case, ours)
            if server in meant.get("servers", ()):
                if room.summary(ours) != meant["answer"] or alike(room, server, ours, plain):
                    faults.append(f"{server}: meant to differ as {meant['answer']!r}: {brief(ours)}")
            elif server in race.get("servers", ()) and "malformed" not in ours and verdict == race["lost"]:
                continue
            elif lost and ("malformed" in ours or verdict is not None):
                faults.append(f"{server}: not as the RFC asks for: {brief(ours)}")
            elif not lost and not any(alike(room, server, ours, answer) for answer in answers):
                faults.append(f"{server}: {brief(ours)}\n      plain: {brief(plain)}")
        if not faults:
            break
    return faults


def alike(room, server, ours, plain):
    if "malformed" in ours or "malformed" in plain:
        return ours == plain
    return shape(room, server, ours) == shape(room, server, plain)


def brief(value):
    text = repr(value)
    return text if len(text) < 1500 else f"{text[:700]} … {text[-700:]}"


def main():
    server = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    only = sys.argv[2:]
    passed = failed = 0
    try:
        ports = {}
        while (line := server.stdout.readline().strip()) != "ready":
            name, port = line.split()
            ports[name] = int(port)
        cases = [(http1, case) for case in http1.CASES] + [(http2, case) for case in http2_cases.CASES]
        cases = [(room, case) for room, case in cases if not only or any(word in case.name for word in only)]
        names = [f"{room.NAME}: {case.name}" for room, case in cases]
        assert len(set(names)) == len(names), "two cases of one name"
        unknown = (set(DEVIATIONS) | set(DIFFERENCES) | set(RACES)) - set(names)
        assert only or not unknown, f"no such case: {unknown}"
        for name, how in DEVIATIONS.items():
            print(f"as hyper does, with and without us: {name}: {how}")
        for name, meant in DIFFERENCES.items():
            print(f"meant to differ: {name}: {meant['answer']}: {meant['why']}")
        with ThreadPoolExecutor(max_workers=12) as pool:
            results = pool.map(lambda pair: check(pair[0], ports, pair[1]), cases)
            for name, faults in zip(names, results):
                if faults:
                    failed += 1
                    print(f"FAILED  {name}\n    " + "\n    ".join(faults))
                else:
                    passed += 1
    finally:
        server.stdin.close()
        server.wait(timeout=10)
    print(f"each of {len(cases)} cases against plain axum and {', '.join(OURS)}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
