"""The page in a real browser: what a person sees and does, each thing once; and twenty people at a time."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from PIL import Image

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline
from tests.demo.models import small
from tests.hub.test_space import push
from tests.hub_clients import Clients
from tests.hub_server import Hub
from tests.runs import Started, finished, log_of

pytestmark = pytest.mark.slow
gradio_client = pytest.importorskip("gradio_client", reason="Gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SECONDS = 60_000
"""Patience with a busy machine, in milliseconds."""


class Served:
    """The page of a model, in a process of its own."""

    def __init__(self, model: Path | str, folder: Path, command: list[str] | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._said = folder / "said"
        words = ["-W", "error::DeprecationWarning:ddpm_hf", "-m", "ddpm_hf.cli.demo", str(model), "--port", str(port)]
        words = [*(command or [sys.executable, *words])]
        words = [word.replace("<port>", str(port)) for word in words]
        self._process = subprocess.Popen(words, cwd=folder, stdout=self._said.open("w"), stderr=subprocess.STDOUT)
        end = time.monotonic() + SECONDS / 1000
        while time.monotonic() < end:
            try:
                urlopen(self.url).close()
                return
            except OSError:
                assert self._process.poll() is None, self.said()
                time.sleep(0.1)
        raise AssertionError(self.said())

    def said(self) -> str:
        return self._said.read_text()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--training.steps", 6, "--training.sample_every", 3, "--training.log_every", 1]
    return finished(tmp_path_factory.mktemp("runs") / "digits", *words)


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    page = Served(trained, tmp_path_factory.mktemp("served"))
    yield page
    page.close()
    assert "Traceback" not in page.said()
    assert page.said().startswith(f"{trained} is shown at {page.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a page; at the end no request may have left this machine, and no script may have failed."""
    pages: list[Any] = []
    requests: list[str] = []
    errors: list[str] = []

    def open_page(url: str) -> Any:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    outside = [url for url in requests if not url.startswith(("http://127.0.0.1", "data:", "blob:", "ws://127.0.0.1"))]
    assert not outside
    assert not errors


def picture_of(page: Any, selector: str) -> Image.Image:
    """What an <img> shows, as it came from the server."""
    address = page.locator(selector).first.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(address).body()))


def expected(model: Path, seed: int, steps: int = 20, **options: Any) -> torch.Tensor:
    pipe = DDPMCustomPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    images: torch.Tensor = pipe(seeds=[seed], num_inference_steps=steps, output_type="uint8", **options).images
    return images[0, 0].cpu()


def close_to(picture: Image.Image, image: torch.Tensor) -> bool:
    """Of another batch, an image may be one grey level away."""
    return bool((small(picture).int() - image.int()).abs().max() <= 1)


@in_a_browser
def test_the_page_opens_with_images_and_the_slider_goes_back_to_the_noise(
    served: Served, trained: Path, visit: Any
) -> None:
    page = visit(served.url)
    page.locator("#images img").nth(15).wait_for()
    assert close_to(picture_of(page, "#images img"), expected(trained, 0))
    assert "16 images in" in page.locator("#drawn").inner_text()
    finished_way = page.locator("#x_t img").get_attribute("src")
    assert picture_of(page, "#x_t img").tobytes() == picture_of(page, "#x_0 img").tobytes()
    slider = page.locator("#moment input[type=range]")
    slider.focus()
    slider.press("Home")
    page.get_by_text("moment 0 of 20, t = 999").wait_for()
    page.wait_for_function("old => document.querySelector('#x_t img').src != old", arg=finished_way)
    assert picture_of(page, "#x_t img").tobytes() != picture_of(page, "#x_0 img").tobytes()


@in_a_browser
def test_the_first_image_is_there_within_two_seconds(served: Served, visit: Any) -> None:
    """The best of three visits; on a machine that has more to do than it has cores, as much later."""

    def seconds() -> float:
        began = time.perf_counter()
        visit(served.url).locator("#images img").first.wait_for()
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 2 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


@in_a_browser
def test_other_settings_draw_other_images_and_a_wrong_one_is_a_sentence(
    served: Served, trained: Path, visit: Any
) -> None:
    page = visit(served.url)
    page.locator("#images img").nth(15).wait_for()
    page.locator("#seed input").fill("7")
    page.locator("#num_images input").fill("2")
    page.locator("#steps input").fill("5")
    page.locator("#draw").click()
    page.get_by_text("2 images in").wait_for()
    assert close_to(picture_of(page, "#images img"), expected(trained, 7, steps=5))
    page.locator("#steps input").fill("2000")
    page.locator("#draw").click()
    page.get_by_text("num_inference_steps").first.wait_for()
    assert "2000" in page.locator(".toast-body").inner_text()
    assert "Traceback" not in page.content()


@in_a_browser
def test_two_samplers_begin_with_the_same_noise(served: Served, trained: Path, visit: Any) -> None:
    page = visit(served.url)
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator("#other_steps input").fill("6")
    page.locator("#compare").click()
    page.locator("#other img").nth(15).wait_for()
    assert "ddim, 20 steps" in page.locator("#one_drawn").inner_text()
    assert "unipc, 6 steps" in page.locator("#other_drawn").inner_text()
    assert close_to(picture_of(page, "#one img"), expected(trained, 0))
    assert picture_of(page, "#one img").tobytes() != picture_of(page, "#other img").tobytes()


@in_a_browser
def test_a_walk_goes_from_seed_to_seed(served: Served, trained: Path, visit: Any) -> None:
    page = visit(served.url)
    page.get_by_role("tab", name="Walk", exact=True).click()
    page.locator("#last_seed input").fill("3")
    page.locator("#columns input").fill("5")
    page.locator("#walk").click()
    page.locator("#way img").nth(4).wait_for()
    assert page.locator("#way img").count() == 5
    assert close_to(picture_of(page, "#way button:first-child img"), expected(trained, 0))
    assert "seed 3" in page.locator("#way").inner_text()


@in_a_browser
def test_a_stroke_of_the_brush_is_painted_anew_and_the_rest_stays(served: Served, trained: Path, visit: Any) -> None:
    page = visit(served.url)
    page.get_by_role("tab", name="Inpaint", exact=True).click()
    page.locator("#paint").click()
    page.get_by_text("there is no image yet").or_(page.get_by_text("nothing is marked")).first.wait_for()
    time.sleep(1.5)
    page.locator("#canvas button[aria-label='Brush']").click()
    box = page.locator("#canvas canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=8)
    page.mouse.up()
    time.sleep(1)
    page.locator("#passes input").fill("1")
    page.locator("#paint").click()
    page.locator("#painted img").wait_for()
    before, after = expected(trained, 0).int(), small(picture_of(page, "#painted img")).int()
    changed = (before - after).abs() > 1
    assert changed[2:6].any()
    assert not changed[:2].any()
    assert not changed[6:].any()
    assert not changed[:, 0].any()


@in_a_browser
def test_the_nearest_training_images_stand_beside_an_image(served: Served, visit: Any) -> None:
    page = visit(served.url)
    page.get_by_role("tab", name="Nearest", exact=True).click()
    page.locator("#num_images input").fill("2")
    page.locator("#nearest").click()
    page.locator("#neighbours img").nth(13).wait_for()
    assert page.locator("#neighbours").inner_text().count("away") == 12


@in_a_browser
def test_the_curves_of_a_run_grow_while_it_trains(tmp_path: Path, visit: Any) -> None:
    slow = ["--training.steps", 100_000, "--training.log_every", 20, "--training.checkpoint_every", 200]
    run = Started([*slow, "--training.sample_every", 200], tmp_path / "run")
    page_of = None
    try:
        run.wait_for_step(20)
        page_of = Served(run.folder, tmp_path)
        page = visit(page_of.url)
        page.get_by_role("tab", name="Run", exact=True).click()
        page.locator("#loss canvas, #loss svg").first.wait_for()
        page.locator("#run").get_by_text("of 100,000").wait_for()
        first = page.locator("#run").inner_text()
        page.wait_for_function("old => document.querySelector('#run').innerText != old", arg=first)
        page.locator("#grids img").first.wait_for()
        assert "step 200" in page.locator("#grids").inner_text()
        page.get_by_role("tab", name="Draw", exact=True).click()
        page.locator("#draw").click()
        page.get_by_text("weights of step").wait_for()
    finally:
        run.processes[0].kill()
        run.processes[0].join()
        if page_of is not None:
            page_of.close()
    assert log_of(run.folder)


def test_twenty_people_at_once_get_the_images_of_their_own_seeds(served: Served, trained: Path) -> None:
    def ask(seed: int) -> list[Any]:
        client = gradio_client.Client(served.url, verbose=False, analytics_enabled=False)
        options = [seed, 2, "ddim", 5, "trailing", 0, "", 1]
        found: list[Any] = [entry["image"] for entry in client.predict(*options, api_name="/draw")[1]]
        return found

    with ThreadPoolExecutor(20) as people:
        pictures = dict(enumerate(people.map(ask, range(100, 160, 3))))
    for i, (one, other) in pictures.items():
        seed = 100 + 3 * i
        assert close_to(Image.open(one), expected(trained, seed, steps=5)), seed
        assert close_to(Image.open(other), expected(trained, seed + 1, steps=5)), seed


def test_a_space_that_was_pushed_shows_the_model(clients: Clients, hub: Hub, trained: Path, tmp_path: Path) -> None:
    status, said = clients.run(push, str(trained), "me/works", HF_TOKEN="hf_me")
    assert status == 0, said
    for name, content in hub.space("me/works").files().items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    start = "import os, runpy, sys; os.environ['GRADIO_SERVER_PORT'] = '<port>'; sys.path.insert(0, os.getcwd()); "
    page = Served("", tmp_path / "space", [sys.executable, "-c", f"{start}runpy.run_path('app.py')"])
    try:
        assert "works" in json.loads(urlopen(f"{page.url}/config").read())["title"]
        client = gradio_client.Client(page.url, verbose=False, analytics_enabled=False)
        found = client.predict(4, 1, "ddim", 5, "trailing", 0, "", 1, api_name="/draw")[1]
        assert close_to(Image.open(found[0]["image"]), expected(trained, 4, steps=5))
    finally:
        page.close()


def test_gradio_gives_no_warning(trained: Path, recwarn: pytest.WarningsRecorder) -> None:
    """In the suite a warning is an error; here the page is built in its process."""
    from ddpm_hf.demo.models import Source
    from ddpm_hf.demo.page import Page

    assert Page(Source(str(trained), 1)).blocks.fns
    assert not [warning for warning in recwarn if "gradio" in str(warning.filename)]
