"""A real browser for the tests of pages: Debian's chromium, driven by selenium."""

import json
import shutil
from pathlib import Path

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


class Browser:
    """One window without a screen; pages are opened from disk."""

    def __init__(self) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        if not (CHROMIUM and DRIVER):
            pytest.skip("chromium and chromedriver are not installed")
        how = webdriver.ChromeOptions()
        how.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            how.add_argument(flag)
        how.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(DRIVER)
        self.driver = webdriver.Chrome(options=how, service=service)
        self.driver.set_script_timeout(60)

    def open(self, page: Path, width: int = 1200, height: int = 800) -> None:
        """Open a page in a window of so many pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get(page.absolute().as_uri())

    def run(self, script: str, *values):
        """Return what a function body returns in the page."""
        return self.driver.execute_script(script, *values)

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true in the page."""
        wait = pytest.importorskip("selenium.webdriver.support.wait")
        waiting = wait.WebDriverWait(self.driver, seconds, poll_frequency=0.02)
        waiting.until(lambda _: self.run(f"return Boolean({expression})"), expression)

    def texts(self, selector: str) -> list[str]:
        """Return what elements say."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def click(self, selector: str) -> None:
        """Click the first such element."""
        self.driver.find_element("css selector", selector).click()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        option = f'{selector} option[value="{value}"]'
        self.driver.find_element("css selector", option).click()

    def press(self, *keys: str, shift: bool = False) -> None:
        """Type keys, where the focus is; names as of selenium's Keys, or characters."""
        module = pytest.importorskip("selenium.webdriver.common.action_chains")
        names = pytest.importorskip("selenium.webdriver.common.keys").Keys
        chain = module.ActionChains(self.driver, duration=0)
        if shift:
            chain.key_down(names.SHIFT)
        for key in keys:
            chain.send_keys(getattr(names, key) if len(key) > 1 else key)
        if shift:
            chain.key_up(names.SHIFT)
        chain.perform()

    def complaints(self) -> list[str]:
        """Return what the console says since the last call, but of tests that read canvases."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in said if "willReadFrequently" not in message]

    def requests(self) -> set[str]:
        """Return the schemes of everything asked for since the last call."""
        messages = [json.loads(e["message"]) for e in self.driver.get_log("performance")]
        sent = [m["message"] for m in messages if "requestWillBeSent" in m["message"]["method"]]
        urls = [message["params"]["request"]["url"] for message in sent if "params" in message]
        return {url.partition(":")[0] for url in urls}

    def milliseconds(self, script: str) -> float:
        """Return how long a statement takes until the next picture is on the screen."""
        return self.driver.execute_async_script(
            f"const done = arguments[0], began = performance.now(); {script}; "
            "requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));"
        )
