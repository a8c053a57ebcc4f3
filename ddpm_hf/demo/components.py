"""What the page is put together from: the fields of settings, and how images are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from ddpm_hf.demo.models import Model, first_look
from ddpm_hf.diffusion.choices import TIMESTEP_SPACINGS
from ddpm_hf.sampling.samplers import SAMPLERS

STEPS = 20
"""Steps that the page opens with: DDIM's images of the digits are as good as they get in so many."""
OF_THE_MODEL = "as in the model"
STYLE = """
.gradio-container {max-width: 1280px !important; margin: auto}
footer {display: none !important}
.pixels img {image-rendering: pixelated}
.pixels .grid-wrap {min-height: 0 !important; height: auto !important; max-height: none !important}
.pixels .grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important}
.pixels .caption-label {font-size: 11px; line-height: 1.3; padding: 0 5px; right: 3px; bottom: 3px; opacity: 0.9}
"""
"""Small images are not smoothed, all columns of them fit, and what they are stands in a corner of each."""
THEME = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])


class Settings:
    """The components that say what is drawn and how, left on the page, for all its tabs.

    Args:
        model: Whose limits they have; None if it is not there yet.
    """

    def __init__(self, model: Model | None) -> None:
        total = model.pipe.scheduler.config.num_train_timesteps if model else 1000
        has_classes = model is None or model.num_classes is not None
        last = model.num_classes - 1 if model is not None and model.num_classes else 0
        self.seed = gr.Number(0, label="First seed", info="a seed always gives the same image", elem_id="seed")
        count = first_look(model) if model else 16
        self.num_images = gr.Number(count, label="Images", info="with the seeds that follow", elem_id="num_images")
        with gr.Group():
            self.sampler = sampler_field("ddim", "sampler")
            self.steps = gr.Number(min(STEPS, total), label="Steps", info=f"1 to {total:,}", elem_id="steps")
            self.spacing = spacing_field("trailing", "spacing")
            self.eta = gr.Slider(0, 1, 0, step=0.05, label="eta", info="noise of ddim: 0 is DDIM, 1 is DDPM")
        with gr.Group(visible=has_classes):
            # Of a model for guidance the last class stands for "no class".
            classes = f"0-{last - 1}" if last > 1 else "0" if last else None
            known = f"of 0 to {last}: " if last else ""
            self.classes = gr.Textbox(
                classes, label="Classes, in turn", info=f"{known}3, or 1,4,7, or 0-9", elem_id="classes"
            )
            self.guidance = gr.Slider(
                0, 10, 1, step=0.1, label="Guidance scale", info="1 is none; needs a model trained with dropped labels"
            )

    @property
    def all(self) -> list[Any]:
        """In the order of `request_of`."""
        of_sampler = [self.sampler, self.steps, self.spacing, self.eta]
        return [self.seed, self.num_images, *of_sampler, self.classes, self.guidance]


def sampler_field(value: str, name: str) -> gr.Dropdown:
    return gr.Dropdown([(OF_THE_MODEL, ""), *SAMPLERS], value=value, label="Sampler", elem_id=name)


def spacing_field(value: str, name: str) -> gr.Dropdown:
    choices = [(OF_THE_MODEL, ""), *((spacing, spacing) for spacing in TIMESTEP_SPACINGS)]
    return gr.Dropdown(choices, value=value, label="Timestep spacing", elem_id=name)


@contextmanager
def told_in_the_page() -> Iterator[None]:
    """Have the one sentence of a refusal come up in the page."""
    try:
        yield
    except (ValueError, NotImplementedError, OSError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def gallery(label: str, name: str, columns: int = 8) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="pixels",
    )


def image(label: str, name: str, height: int = 360) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        height=height,
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="pixels",
    )
