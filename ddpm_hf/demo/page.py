"""The page, in Gradio: what stands where, and which function each button calls. The work is in the other files."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import gradio as gr
import pandas as pd

from ddpm_hf.demo.components import (
    STEPS,
    STYLE,
    THEME,
    Settings,
    gallery,
    image,
    sampler_field,
    spacing_field,
    told_in_the_page,
)
from ddpm_hf.demo.drawing import Drawn, between, draw, frame, known_image, marked, repaint
from ddpm_hf.demo.fields import for_a_brush, opacity_of, request_of, whole
from ddpm_hf.demo.models import Model, Source
from ddpm_hf.demo.runs import Run

LIVE = 2.0
"""Seconds between two looks at a run under way."""
HOUR = 3600
MOST_VISITORS = 200
"""Visitors whose last images are kept for the slider, up to `drawing.MOST_BYTES` each; beyond, the oldest go."""
PROGRESS = gr.Progress()


class Page:
    """The page of a model.

    Args:
        source: Where the model comes from.
        title: What stands above it; None for the last part of the model's name.

    Attributes:
        blocks: It, in Gradio.
    """

    def __init__(self, source: Source, title: str | None = None) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._opened: Drawn | None = None
        self._run = Run(source.run, source.accelerator) if source.run else None
        try:
            self._first: Model | None = source.model()
            about = f"{self._first}"
        except ValueError as error:  # a run that has no checkpoint yet
            if self._run is None:
                raise
            self._first, about = None, str(error)
        # One request at a time has the processor; those of other people wait in the queue, in their order.
        self._drawing = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        self._looking = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        title = title or source.name.rstrip("/").rpartition("/")[2] or source.name
        own = {"title": f"{title} · ddpm_hf", "analytics_enabled": False, "fill_width": True}
        with gr.Blocks(**own, delete_cache=(HOUR, HOUR)) as self.blocks:
            gr.Markdown(f"## {title}\n{about}", elem_id="about")
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    self._settings = Settings(self._first)
                with gr.Column(scale=3, min_width=420), gr.Tabs():
                    self._lay_out()

    def _opening(self) -> Drawn:
        """What the page shows by itself: drawn once for everybody, as the same seeds give the same images."""
        with self._lock:
            model = self._source.model()
            if self._opened is None or self._opened.model is not model:
                self._opened = draw(model, request_of(*(component.value for component in self._settings.all)))
            return self._opened

    def _lay_out(self) -> None:
        with gr.Tab("Draw"):
            self._tab_of_drawing()
        with gr.Tab("Compare"):
            self._tab_of_comparison()
        with gr.Tab("Walk"):
            self._tab_of_walk()
        with gr.Tab("Inpaint") as tab:
            self._tab_of_inpainting(tab)
        if self._run is not None:
            with gr.Tab("Nearest"):
                self._tab_of_neighbours(self._run)
            with gr.Tab("Run"):
                self._tab_of_run(self._run)

    def _tab_of_drawing(self) -> None:
        button = gr.Button("Draw", variant="primary", elem_id="draw")
        status = gr.Markdown(elem_id="drawn")
        images = gallery("Images", "images")
        gr.Markdown("#### How they came about")
        moment = gr.Slider(0, STEPS, STEPS, step=1, label="From noise (left) to the finished images", elem_id="moment")
        at = gr.Markdown(elem_id="at")
        with gr.Row():
            x_t = image("x_t", "x_t")
            x_0 = image("x_0 that the network predicts of it", "x_0")
        way = gr.State(None, time_to_live=HOUR)

        def drawn(progress: Any = PROGRESS, *values: Any) -> list[Any]:
            with told_in_the_page():
                return shown(draw(self._source.model(), request_of(*values), _on_step(progress)))

        def opened() -> list[Any]:
            with told_in_the_page():
                return shown(self._opening())

        def shown(found: Drawn) -> list[Any]:
            last = len(found.way) - 1
            return [str(found), found.pictures, gr.Slider(maximum=last, value=last), found, *at_moment(found, last)]

        def at_moment(found: Drawn | None, index: float) -> list[Any]:
            if found is None:
                return ["", None, None]
            i = min(int(index), len(found.way) - 1)
            says = f"moment {i} of {len(found.way) - 1}, t = {found.way.timesteps[i]}"
            noisy = frame(found.model, found.way.samples[i])
            if found.way.predictions is None:
                return [f"{says}; this sampler does not say what image it predicts, ddim and ddpm do", noisy, None]
            return [says, noisy, frame(found.model, found.way.predictions[i])]

        outputs = [status, images, moment, way, at, x_t, x_0]
        triggers = [button.click, self._settings.seed.submit]
        gr.on(triggers, drawn, self._settings.all, outputs, **self._drawing | _api("draw"))
        if self._first is not None:
            self.blocks.load(opened, None, outputs, concurrency_limit=None, api_visibility="private")
        moment.input(at_moment, [way, moment], [at, x_t, x_0], trigger_mode="always_last", **self._looking)

    def _tab_of_comparison(self) -> None:
        gr.Markdown("The settings on the left, beside another sampler that starts from the same noise.")
        with gr.Row():
            sampler = sampler_field("unipc", "other_sampler")
            steps = gr.Number(10, label="Steps", elem_id="other_steps")
            spacing = spacing_field("linspace", "other_spacing")
            eta = gr.Slider(0, 1, 0, step=0.05, label="eta")
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Row():
            with gr.Column(min_width=200):
                status, images = gr.Markdown(elem_id="one_drawn"), gallery("Settings on the left", "one", columns=4)
            with gr.Column(min_width=200):
                other, others = gr.Markdown(elem_id="other_drawn"), gallery("The other sampler", "other", columns=4)

        def compared(progress: Any = PROGRESS, *values: Any) -> list[Any]:
            ours, of_other = values[:8], values[8:]
            with told_in_the_page():
                model, requests = self._source.model(), [request_of(*ours)]
                requests.append(request_of(*ours[:2], *of_other, *ours[6:]))
                found = [
                    draw(model, request, _on_step(progress, f"sampler {i + 1}")) for i, request in enumerate(requests)
                ]
            return [part for one in found for part in (str(one), one.pictures)]

        inputs = [*self._settings.all, sampler, steps, spacing, eta]
        button.click(compared, inputs, [status, images, other, others], **self._drawing | _api("compare"))

    def _tab_of_walk(self) -> None:
        gr.Markdown(
            "From the image of the first seed to that of another one: the noise goes along the great circle between "
            "the two, and a sampler without noise of its own takes it to images."
        )
        with gr.Row():
            last = gr.Number(1, label="Last seed", elem_id="last_seed")
            columns = gr.Number(12, label="Images, both ends included", elem_id="columns")
        button = gr.Button("Walk", variant="primary", elem_id="walk")
        images = gallery("The way", "way")

        def walked(progress: Any = PROGRESS, *values: Any) -> Any:
            with told_in_the_page():
                ends = whole("the last seed", values[8]), whole("the number of images", values[9])
                return between(self._source.model(), request_of(*values[:8]), *ends, _on_step(progress))

        inputs = [*self._settings.all, last, columns]
        button.click(walked, inputs, images, **self._drawing | _api("walk"))

    def _tab_of_inpainting(self, tab: gr.Tab) -> None:
        gr.Markdown("Paint over a part of the image; RePaint draws it anew so that it fits the rest.")
        with gr.Row():
            take = gr.Button("Take the image of the first seed", elem_id="take")
            again = gr.Number(5, label="Passes", info="more fit the rest better, and take longer", elem_id="passes")
            seed = gr.Number(1, label="Seed of the new part", elem_id="new_seed")
        with gr.Row():
            with gr.Column(min_width=300):
                canvas = gr.ImageEditor(
                    label="Image, to be painted over",
                    type="pil",
                    sources=["upload"],
                    transforms=[],
                    layers=False,
                    brush=gr.Brush(default_size=32, colors=["#f97316"], color_mode="fixed"),
                    format="png",
                    height=440,
                    elem_id="canvas",
                    elem_classes="pixels",
                )
            with gr.Column(min_width=300):
                result = image("Painted anew", "painted", height=440)
        button = gr.Button("Paint", variant="primary", elem_id="paint")

        def taken(*values: Any) -> list[Any]:
            with told_in_the_page():
                one = request_of(values[0], 1, *values[2:8])
                return [for_a_brush(draw(self._source.model(), one).pictures[0][0]), True]

        def first_taken(has_image: bool, *values: Any) -> list[Any]:
            return [gr.skip(), True] if has_image else taken(*values)

        def painted(progress: Any = PROGRESS, *values: Any) -> Any:
            with told_in_the_page():
                model, editor = self._source.model(), values[8] or {}
                background, layers = editor.get("background"), editor.get("layers") or []
                if background is None:
                    raise ValueError("there is no image yet; take that of the first seed, or upload one")
                if not model.is_of_pictures:
                    raise ValueError("inpainting on the page is for grey and colour images of 8 bits")
                request = request_of(values[10], 1, *values[2:8])
                opacity = opacity_of(layers, background.size)
                known, mask = known_image(model, background), marked(model, opacity)
                passes = whole("the number of passes", values[9])
                return for_a_brush(repaint(model, known, mask, request, passes, _on_step(progress)))

        has_image = gr.State(False)
        take.click(taken, self._settings.all, [canvas, has_image], **self._drawing)
        tab.select(first_taken, [has_image, *self._settings.all], [canvas, has_image], **self._drawing)
        button.click(painted, [*self._settings.all, canvas, again, seed], result, **self._drawing)

    def _tab_of_neighbours(self, run: Run) -> None:
        gr.Markdown(
            "Each image of the settings on the left (up to 6), beside the training images nearest to it, in the "
            "features that score the run. One at a distance near 0 was learned by heart."
        )
        button = gr.Button("Find the nearest training images", variant="primary", elem_id="nearest")
        images = gallery("Drawn, and the nearest training images", "neighbours", columns=7)

        def found(progress: Any = PROGRESS, *values: Any) -> Any:
            with told_in_the_page():
                count = min(whole("num_images", values[1]), 6)
                drawn = draw(self._source.model(), request_of(values[0], count, *values[2:]), _on_step(progress))
                return [picture for row in run.neighbours(drawn, 6) for picture in row]

        button.click(found, self._settings.all, images, **self._drawing | _api("nearest"))

    def _tab_of_run(self, run: Run) -> None:
        status = gr.Markdown(elem_id="run")
        with gr.Row():
            loss = gr.LinePlot(x="step", y="loss", color="images", title="Loss", height=300, elem_id="loss")
            with gr.Column(min_width=200):
                choice = gr.Dropdown(label="Curve", interactive=True, elem_id="choice")
                other = gr.LinePlot(x="step", y="value", height=240, elem_id="other_curve")
        grids = gallery("Samples over time", "grids", columns=3)
        seen = gr.State("")

        def looked(before: str, chosen: str | None) -> list[Any]:
            now = run.state
            if now == before:
                return [gr.skip()] * len(outputs)
            try:
                says = " ".join(filter(None, [run.progress(), run.scores()]))
            except (ValueError, OSError) as error:  # which would come up again with each look
                says = str(error)
            curves = run.curves()
            chosen = chosen if chosen in curves else next(iter(curves), None)
            points = pd.DataFrame(run.losses(), columns=["step", "loss", "images"])
            return [now, says, points, gr.Dropdown(list(curves), value=chosen), curve(chosen), run.grids()]

        def curve(chosen: str | None) -> Any:
            return gr.LinePlot(
                pd.DataFrame(run.curves().get(chosen or "", []), columns=["step", "value"]), title=chosen
            )

        outputs = [seen, status, loss, choice, other, grids]
        self.blocks.load(looked, [seen, choice], outputs, **self._looking)
        gr.Timer(LIVE).tick(looked, [seen, choice], outputs, **self._looking)
        choice.input(curve, choice, other, **self._looking)

    def launch(self, **options: Any) -> None:
        """Serve it, to this machine alone unless `server_name` or GRADIO_SERVER_NAME says otherwise.

        Args:
            options: More of Gradio's.

        Raises:
            OSError: the address cannot be used.
        """
        if self._first is not None:
            threading.Thread(target=self._opening, name="first images", daemon=True).start()
        logging.getLogger("uvicorn.error").addFilter(_is_no_farewell)
        self.blocks.queue(default_concurrency_limit=1)
        own = {"share": False, "ssr_mode": False, "state_session_capacity": MOST_VISITORS, "css": STYLE, "theme": THEME}
        self.blocks.launch(**own, **options)

    def wait(self) -> None:
        """Until Ctrl-C."""
        self.blocks.block_thread()


def _is_no_farewell(record: logging.LogRecord) -> bool:
    """Whether a log record is something else than that somebody closed the page while it sent something."""
    return record.exc_info is None or "ClientDisconnect" not in str(record.exc_info[0])


def _api(name: str) -> dict[str, Any]:
    """Of a function that other programs may call too, by gradio_client."""
    return {"api_name": name, "api_visibility": "public"}


def _on_step(progress: Any, what: str = "step") -> Callable[[int, int], None]:
    return lambda done, steps: progress((done, steps), desc=what)
