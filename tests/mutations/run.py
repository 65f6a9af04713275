#!/usr/bin/env python3
"""Breaks the contract on purpose, one rule at a time, and sees that a test notices.

    python3 tests/mutations/run.py            all of list.toml
    python3 tests/mutations/run.py 7 12       those of rules 7 and 12
    python3 tests/mutations/run.py shield     those that say so, or whose rule or suite is called so
    python3 tests/mutations/run.py --check    only that each still applies to the source

Works on a copy of the files that git knows, in target/mutations, so that this tree stays as it is. Writes the table of
tests/README.md to target/mutations/table.md. Fails if a mutation is noticed by no test, or applies no longer.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "mutations"
TREE = WORK / "tree"
SECONDS = 300


def copy_tree():
    """Brings the copy up to date; files that are the same keep their times, so that cargo builds little."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        source, target = ROOT / name, TREE / name
        if not source.is_file():
            continue
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def run_tests(mutation):
    """The tests that failed, or None if the tests could not be built."""
    features = ["--features", mutation["features"]] if "features" in mutation else []
    target = ["--lib"] if mutation["test"] == "lib" else ["--test", mutation["test"]]
    command = ["cargo", "test", "--locked", *features, *target, "--", mutation["filter"]]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"), RUST_BACKTRACE="0")
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        running = re.findall(r"^test (\S+) has been running", output, re.M)
        return running or re.findall(r"^test (\S+) \.\.\. FAILED", output, re.M) or ["(it never ended)"]
    (WORK / "last.log").write_text(output)
    if "could not compile" in output or "running " not in output:
        print(output[-3000:])
        return None
    failed = re.findall(r"^test (\S+) \.\.\. FAILED", output, re.M)
    if process.returncode != 0 and not failed:
        failed = [f"(the process died: {process.returncode})"]
    return sorted(failed)


def main():
    mutations = tomllib.loads((Path(__file__).parent / "list.toml").read_text())["mutation"]
    stale = [m for m in mutations if (ROOT / m["file"]).read_text().count(m["old"]) != 1]
    for mutation in stale:
        print(f"applies no longer: rule {mutation['rule']}, {mutation['breaks']} ({mutation['file']})")
    if "--check" in sys.argv or stale:
        sys.exit(bool(stale))
    rules = {int(argument) for argument in sys.argv[1:] if argument.isdigit()}
    words = [argument for argument in sys.argv[1:] if not argument.isdigit()]  # `--check` has left already
    copy_tree()
    rows, survivors = [], 0
    for mutation in mutations:
        said = f"{mutation['rule']} {mutation['breaks']} {mutation['test']}"
        if rules and mutation["rule"] not in rules or not all(word in said for word in words):
            continue
        path = TREE / mutation["file"]
        whole = path.read_text()
        path.write_text(whole.replace(mutation["old"], mutation["new"]))
        try:
            failed = run_tests(mutation)
        finally:
            path.write_text(whole)
        caught = "NOTHING" if failed == [] else "DOES NOT BUILD" if failed is None else f"`{mutation['test']}`: `{failed[0]}`"
        if failed and len(failed) > 1:
            caught += f" and {len(failed) - 1} more"
        survivors += not failed
        rows.append(f"| {mutation['rule']} | {mutation['breaks']} | {caught} |")
        print(rows[-1], flush=True)
    (WORK / "table.md").write_text("\n".join(["| rule | what is broken | what notices |", "|---|---|---|", *rows]) + "\n")
    print(f"{len(rows)} mutations, {survivors} not noticed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
