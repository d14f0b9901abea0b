"""The page in a real browser, with a microphone that plays a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from conftest import Sample
from serving import Served, served
from test_webm import write_aac

from ark_asr_onnx.audio import containers, sources
from ark_asr_onnx.server.limits import Access
from ark_asr_onnx.server.service import ServiceSettings

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    (not CHROMIUM or not DRIVER) and os.environ.get("ARK_ASR_TEST_BROWSER") != "required",
    reason="needs Debian's chromium and chromium-driver",
)


@contextmanager
def browser(*flags: str) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=420,900",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", *flags,
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


class Page:
    """The page, as a person uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url
        driver.get(f"{url}/ui")

    def element(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def wait(self, condition: Any) -> Any:
        return WebDriverWait(self.driver, 20, 0.05).until(lambda _: condition())

    def transcribe(self) -> str:
        self.wait(lambda: self.element("go").is_enabled())
        self.element("go").click()
        self.wait(lambda: not self.element("cancel").is_displayed())
        return self.element("text").text

    def requested(self) -> set[str]:
        """Addresses that the page asked for."""
        messages = (json.loads(e["message"]) for e in self.driver.get_log("performance"))
        sent = (m["message"]["params"] for m in messages
                if m["message"]["method"] == "Network.requestWillBeSent")  # fmt: skip
        return {request["request"]["url"] for request in sent}


def test_a_file_and_what_it_gives(server: Served, samples: list[Sample]) -> None:
    with browser() as driver:
        page = Page(driver, server.url)
        page.wait(lambda: page.element("state").text == "ready")
        page.element("file").send_keys(str(samples[0].path.resolve()))
        assert page.transcribe() == samples[0].text
        raw = page.element("raw").get_attribute("textContent")
        assert '"segments"' in raw
        page.driver.execute_script("document.getElementById('endpoint').value = 'asr'")
        assert page.transcribe() == samples[0].text
        assert "latency" in page.element("figures").text
        page.element("clear").click()
        assert not page.element("result").is_displayed()
        here = (server.url, "blob:", "data:")
        assert [url for url in page.requested() if not url.startswith(here)] == []
        assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []


def test_words_are_played_and_marked(
    server: Served, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(selector: str = ".word") -> list[str]:
        return [word.text for word in driver.find_elements("css selector", f"#text {selector}")]

    def player(what: str) -> Any:
        return driver.execute_script(f"return document.getElementById('player').{what}")

    with browser() as driver:
        page = Page(driver, server.url)
        page.wait(lambda: page.element("state").text == "ready")
        page.element("file").send_keys(str(samples[0].path.resolve()))
        assert page.transcribe() == samples[0].text
        assert words() == samples[0].text.split()
        assert words("[aria-current]") == []
        answer = json.loads(page.element("raw").get_attribute("textContent"))
        player("playbackRate = 0.1")
        third = driver.find_elements("css selector", "#text .word")[2]
        third.click()
        page.wait(lambda: words("[aria-current]") == [third.text])
        start, end = (answer["words"][2][name] for name in ("start", "end"))
        assert start <= player("currentTime") < end
        assert not player("paused")
        player("playbackRate = 2")
        page.wait(lambda: words("[aria-current]") == words()[3:])
        page.wait(lambda: player("ended"))
        assert words("[aria-current]") == []
        page.element("file").send_keys(str(samples[1].path.resolve()))
        assert (page.element("text").text, words()) == (samples[0].text, [])  # of another audio
        assert page.transcribe() == samples[1].text
        assert words() == samples[1].text.split()
        page.element("clear").click()
        assert words() == []
        assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    monkeypatch.setattr(server.service.transcriber, "has_words", False)
    with browser() as driver:
        page = Page(driver, server.url)
        page.wait(lambda: page.element("state").text == "ready")
        page.element("file").send_keys(str(samples[0].path.resolve()))
        assert page.transcribe() == samples[0].text
        assert words() == []


def test_the_microphone(server: Served, samples: list[Sample], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mic.wav", sources.read(samples[0].path), 16000)
    flag = f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}%noloop"
    with browser(flag) as driver:
        page = Page(driver, server.url)
        page.element("record").click()
        page.wait(lambda: page.element("clock").text == "0:03")
        page.element("record").click()
        assert page.transcribe() == samples[0].text


@pytest.mark.parametrize("fails", [False, True])
def test_the_microphone_is_let_go(server: Served, fails: bool) -> None:
    with browser() as driver:
        page = Page(driver, server.url)
        driver.execute_script(
            """
            window.streams = [];
            const media = navigator.mediaDevices, ask = media.getUserMedia.bind(media);
            media.getUserMedia = async (wish) => {
              window.streams.push(await ask(wish));
              return window.streams.at(-1);
            };
            const fail = () => Promise.reject(new Error("x"));
            if (arguments[0]) AudioWorklet.prototype.addModule = fail;
            const button = document.getElementById("record");
            button.click();
            button.click();
            """,
            fails,
        )
        if fails:
            page.wait(lambda: page.element("error").text == "Microphone: x")
        else:
            page.wait(lambda: page.element("clock").text != "0:00")
            page.element("record").click()
            page.wait(lambda: page.element("player").is_displayed())
        assert page.element("record").is_enabled()
        assert driver.execute_script("return window.streams.length") == 1
        states = "window.streams[0].getTracks().map((track) => track.readyState)"
        assert set(driver.execute_script(f"return {states}")) == {"ended"}


def test_what_the_service_cannot_decode_the_browser_may(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "voice.m4a"
    write_aac(path, sources.read(samples[0].path), "ipod")
    monkeypatch.setattr(containers, "has_media", lambda: False)
    with served() as plain, browser() as driver:
        page = Page(driver, plain.url)
        page.element("file").send_keys(str(path))
        assert page.transcribe() == samples[0].text


def test_what_is_missing_of_the_audio_is_told(
    server: Served, samples: list[Sample], tmp_path: Path
) -> None:
    whole = np.append(sources.read(samples[0].path), np.zeros(16000, np.float32))
    soundfile.write(tmp_path / "cut.wav", whole, 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-20_000])
    with browser() as driver:
        page = Page(driver, server.url)
        page.element("file").send_keys(str(tmp_path / "cut.wav"))
        assert page.transcribe() == samples[0].text
        assert "header says" in page.element("warnings").text
        page.element("file").send_keys(str(samples[0].path.resolve()))
        assert page.transcribe() == samples[0].text
        assert not page.element("warnings").is_displayed()


def test_errors_say_what_to_do(samples: list[Sample], tmp_path: Path) -> None:
    (broken := tmp_path / "broken.wav").write_bytes(b"no audio at all")
    access = Access(keys=frozenset({"secret"}))
    with served(ServiceSettings(access=access)) as closed, browser() as driver:
        page = Page(driver, closed.url)
        page.element("file").send_keys(str(samples[0].path.resolve()))
        page.transcribe()
        assert "no valid key" in page.element("error").text
        page.element("key").send_keys("secret")
        assert page.transcribe() == samples[0].text
        page.element("file").send_keys(str(broken))
        page.transcribe()
        assert "not readable as audio" in page.element("error").text


def test_no_microphone_where_browsers_give_none(server: Served) -> None:
    rule = "--host-resolver-rules=MAP far.example 127.0.0.1"
    settings = ServiceSettings(access=Access(hosts=frozenset({"far.example"})))
    with served(settings) as far, browser(rule) as driver:
        page = Page(driver, f"http://far.example:{far.port}")
        assert not page.element("record").is_enabled()
        assert "https" in page.element("microphone-hint").text
    assert server.get("/ui/recorder.js").headers["content-type"].startswith("text/javascript")


def test_its_files_are_all_there_is(server: Served) -> None:
    for path in ("/", "/ui"):
        found = server.get(path)
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert b"http" not in found.body
    for path in ("/ui/nothing.js", "/ui/..%2fapp.py", "/ui/%2e%2e/app.py", "/ui/__init__.py"):
        assert server.get(path).status == 404
    with served(ServiceSettings(has_page=False)) as plain:
        assert plain.get("/").status == 404
