"""A headless Chromium, driven over the pipe of its DevTools protocol: no library, no port."""

import base64
import fcntl
import json
import os
import subprocess
import tempfile
import time

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--remote-debugging-pipe"]


class Refused(Exception):
    """What the browser does not do, and why."""


class Page:
    """One page. `errors` is what its console and the browser complained of."""

    def __init__(self, target, width=1040, height=1200, javascript=True):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs, ours), (answers, their_answers) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs, their_answers)]
        command = f'exec chromium "$@" 3<&{high[0]} 4>&{high[1]}'
        flags = [*FLAGS, f"--user-data-dir={self.folder.name}", f"--window-size={width},{height}"]
        self.browser = subprocess.Popen(["bash", "-c", command, "chromium", *flags], pass_fds=high,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs, their_answers, *high):
            os.close(fd)
        self.commands, self.answers = os.fdopen(ours, "wb", 0), os.fdopen(answers, "rb", 0)
        self.buffer, self.count, self.session, self.errors = b"", 0, None, []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        if not javascript:
            self.call("Emulation.setScriptExecutionDisabled", value=True)
        self.call("Page.navigate", url=target)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.browser.terminate()
        self.browser.wait(timeout=20)
        self.commands.close()
        self.answers.close()
        self.folder.cleanup()

    def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise Refused(method, answer["error"])
                return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            chunk = self.answers.read(65536)
            assert chunk, "the browser is gone"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(parameters["exceptionDetails"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.errors.append(parameters["args"])
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(parameters["entry"])
        return message

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression, seconds=20):
        """Waits until a JavaScript expression holds. The page may load anew meanwhile, in which nothing can be asked of it."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := self.value(expression):
                    return value
                assert time.monotonic() < end, (expression, self.value("document.body?.innerText"), self.errors)
            except Refused as refused:
                assert time.monotonic() < end, (expression, refused, self.errors)
            time.sleep(0.05)

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
