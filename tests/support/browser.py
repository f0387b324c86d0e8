"""A real browser without a window, driven over the W3C's WebDriver protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.servers import Server, until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NO_BROWSER = None if CHROMIUM and DRIVER else "no chromium and chromedriver are installed"
# Nothing but the page: no sandbox, which root has not, and no calls of the browser's own.
# MODELS_EXAMPLE is this machine by a name that a browser trusts less than localhost.
MODELS_EXAMPLE = "models.example"
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for the id of one
ENTER, TAB, ESCAPE, SHIFT, CONTROL, SPACE, RELEASE = "\ue007", "\ue004", "\ue00c", "\ue008", "\ue009", " ", "\ue000"
SECONDS = 60


class ChromeDriver(Server):
    health = "/status"

    def command(self):
        return [DRIVER, f"--port={self.port}"]


class Browser:
    """One window. Elements are found by CSS selectors; of several the first."""

    def __init__(self, driver: ChromeDriver, folder: Path) -> None:
        self.uri = f"{driver.uri}/session"
        names = f"--host-resolver-rules=MAP {MODELS_EXAMPLE} 127.0.0.1"
        switches = [*SWITCHES.split(), names, f"--user-data-dir={folder}"]
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": switches},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self.uri += f"/{made['sessionId']}"

    def close(self) -> None:
        self._send("DELETE", "")

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def resize(self, width: int, height: int = 800, *, phone: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        """Args: scheme: of colors, "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def js(self, script: str, *arguments: Any) -> Any:
        """Returns what a script returns, as JSON has it. Its arguments are `arguments[0]` and so on."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self._element(selector)}/click", {})

    def write(self, selector: str, text: str) -> None:
        """Replaces what is in a field, as a person would."""
        element = self._element(selector)
        self._send("POST", f"/element/{element}/clear", {})
        self._send("POST", f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Presses keys one after another, wherever the focus is; a key with others held is `SHIFT + ENTER`."""
        for key in keys:
            *held, last = list(key)
            down = [{"type": "keyDown", "value": each} for each in (*held, last)]
            up = [{"type": "keyUp", "value": each} for each in (last, *reversed(held))]
            source = {"type": "key", "id": "keys", "actions": down + up}
            self._send("POST", "/actions", {"actions": [source]})

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        """Of all that are shown."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        return list(self.js(f"{script}.map(e => e.textContent)", selector))

    def focused(self) -> str:
        """Returns the id of what has the focus, or else its class, or its tag."""
        return str(self.js("const e = document.activeElement; return e.id || e.className || e.tagName"))

    def until(self, condition: str, *arguments: Any, seconds: float = SECONDS) -> None:
        """Waits until an expression is true."""
        until(lambda: self.js(f"return {condition}", *arguments), seconds)

    def console(self) -> list[str]:
        """Returns what the browser has complained of since this was last asked."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def _element(self, selector: str) -> str:
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.uri}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            problem = json.load(error)["value"]
            raise AssertionError(f"{method} {path} {body}: {problem['error']}: {problem['message']}") from None


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Yields a browser that keeps its files in a folder."""
    driver = ChromeDriver(folder)
    driver.start()
    try:
        browser = Browser(driver, folder / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.kill()
