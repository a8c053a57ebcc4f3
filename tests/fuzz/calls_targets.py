"""Calls of the pipeline, the schedulers and the metrics: finite results that make sense, or one sentence."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler
from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, PREDICTION_TYPES, TIMESTEP_SPACINGS
from ddpm_hf.metrics import (
    FrechetDistance,
    ImprovedPrecisionRecall,
    InceptionScore,
    KernelDistance,
)
from tests.fuzz.files_targets import tiny_pipeline
from tests.fuzz.outcomes import Fault, Refused, outcome_of
from tests.fuzz.rounds import Check, Target
from tests.fuzz.values import EDGES, FRACTIONS, numbers, scalars

whole_numbers = st.sampled_from(EDGES) | st.integers(-3, 30)
as_array: SearchStrategy[Any] = st.sampled_from([list, tuple, np.array, torch.tensor, range, iter])


def _sequence(kind: Any, values: list[Any]) -> Any:
    try:
        return range(*values[:3]) if kind is range else kind(values)
    except Exception:  # numpy and torch have no array of these: a list will do
        return values


sequences = st.builds(_sequence, as_array, st.lists(whole_numbers | scalars, max_size=4) | st.lists(st.integers(0, 19)))

calls: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(-1, 4) | scalars.filter(lambda value: not _is_large(value)),
        "seeds": sequences | scalars,
        "num_inference_steps": st.integers(-1, 25) | scalars,
        "timesteps": sequences | scalars,
        "timestep_spacing": st.sampled_from([*TIMESTEP_SPACINGS, "other"]) | scalars,
        "eta": numbers | st.floats(0, 1) | scalars,
        "use_clipped_model_output": st.booleans() | scalars,
        "class_labels": sequences | scalars,
        "guidance_scale": numbers | scalars,
        "output_type": st.sampled_from(["pil", "np", "numpy", "pt", "uint8", "other"]) | scalars,
        "generator": st.builds(torch.Generator) | st.lists(st.builds(torch.Generator), max_size=3) | scalars,
    },
)


def _is_large(value: Any) -> bool:
    """A number of images that is a right one, but takes long."""
    return isinstance(value, int | float) and 64 < value < 10**5


def _pipeline(folder: Path) -> Check:
    pipe = DDPMCustomPipeline.from_pretrained(tiny_pipeline(folder / "model"))
    pipe.set_progress_bar_config(disable=True)
    truth: dict[int, Any] = {}

    def check(call: dict[str, Any]) -> None:
        if any(64 < len(value) < 10**6 for value in call.values() if isinstance(value, range | list)):
            return  # right, and slow
        seeds = call.get("seeds")
        listed = (
            list(seeds)
            if isinstance(seeds, list | tuple | np.ndarray | torch.Tensor | range) and np.ndim(seeds)
            else None
        )
        images = outcome_of(lambda: pipe(**call).images)
        if isinstance(images, Refused):
            return
        array = [np.asarray(image) for image in images]
        if not all(np.isfinite(image).all() for image in array):
            raise Fault("silent difference", "numbers that are not finite")
        if listed is not None and set(call) <= {"seeds", "output_type"} and call.get("output_type") == "uint8":
            for seed, image in zip(listed, array, strict=True):
                number = int(seed)
                if number not in truth:
                    truth[number] = np.asarray(pipe(seeds=[number], output_type="uint8").images)[0]
                if not np.array_equal(image, truth[number]):
                    raise Fault("silent difference", f"seed {seed!r} is not seed {number}")

    return check


configs: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "num_train_timesteps": st.integers(-1, 40) | scalars.filter(lambda value: not _is_large(value)),
        "beta_start": st.floats(-0.1, 1.1) | scalars,
        "beta_end": st.floats(-0.1, 1.1) | scalars,
        "beta_schedule": st.sampled_from([*NOISE_SCHEDULES, "other"]) | scalars,
        "trained_betas": st.lists(st.floats(-0.1, 1.1) | st.sampled_from(FRACTIONS), max_size=4) | scalars,
        "prediction_type": st.sampled_from([*PREDICTION_TYPES, "other"]) | scalars,
        "clip_sample": st.booleans() | scalars,
        "clip_sample_range": st.sampled_from(FRACTIONS) | scalars,
        "thresholding": st.booleans() | scalars,
        "dynamic_thresholding_ratio": st.sampled_from(FRACTIONS) | scalars,
        "sample_max_value": st.sampled_from(FRACTIONS) | scalars,
        "timestep_spacing": st.sampled_from([*TIMESTEP_SPACINGS, "other"]) | scalars,
        "steps_offset": st.integers(-1, 3) | scalars,
        "rescale_betas_zero_snr": st.booleans() | scalars,
    },
)


def _schedulers(folder: Path) -> Check:
    def check(example: tuple[bool, dict[str, Any], Any, Any]) -> None:
        is_ddim, config, steps, visited = example
        kind = DDIMScheduler if is_ddim else DDPMScheduler
        scheduler = outcome_of(lambda: kind(**config))
        if isinstance(scheduler, Refused):
            return
        products = scheduler.alphas_cumprod.double()
        if not bool(((products >= 0) & (products <= 1)).all()) or not bool((products.diff() <= 0).all()):
            raise Fault("silent difference", f"alpha_bar is {products[:4].tolist()} ... of {config}")
        options = {"timesteps": visited} if visited is not None else {"num_inference_steps": steps}
        done = outcome_of(lambda: scheduler.set_timesteps(**options))
        if isinstance(done, Refused):
            return
        if len(scheduler.timesteps) > 100:
            return
        image = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

        def walk() -> Any:
            x_t = image
            for t in scheduler.timesteps:
                x_t = scheduler.step(image, t, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
            return x_t

        x_0 = outcome_of(walk)
        if not isinstance(x_0, Refused) and not bool(x_0.isfinite().all()):
            raise Fault("silent difference", f"a step gave numbers that are not finite with {config}")

    return check


features = st.tuples(st.integers(0, 12), st.integers(1, 4), st.sampled_from(["normal", "equal", "nan", "inf", "huge"]))


def _features(size: tuple[int, int, str], seed: int) -> torch.Tensor:
    rows, columns, kind = size
    if kind == "normal":
        return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    value = {"equal": 1.0, "nan": math.nan, "inf": math.inf, "huge": 1e30}[kind]
    return torch.full((rows, columns), value)


def _metrics(folder: Path) -> Check:
    kinds = {kind.__name__: kind for kind in (FrechetDistance, ImprovedPrecisionRecall, InceptionScore, KernelDistance)}

    def check(example: tuple[str, Any, Any, dict[str, Any]]) -> None:
        name, real, fake, options = example

        def scored() -> dict[str, Any]:
            metric = kinds[name](**options)
            metric.update(_features(real, 0), real=True)
            metric.update(_features(fake, 1), real=False)
            return dict(metric.compute())

        scores = outcome_of(scored)
        if isinstance(scores, Refused):
            return
        for score, value in scores.items():
            if not math.isfinite(float(value)):
                raise Fault("silent difference", f"{score} is {float(value)}")
            if score in ("precision", "recall") and not 0 <= float(value) <= 1:
                raise Fault("silent difference", f"{score} is {float(value)}")

    return check


options = st.one_of(
    st.tuples(st.just("FrechetDistance"), features, features, st.just({})),
    st.tuples(
        st.just("ImprovedPrecisionRecall"),
        features,
        features,
        st.fixed_dictionaries({}, optional={"k": whole_numbers | scalars}),
    ),
    st.tuples(st.just("InceptionScore"), features, features, st.just({})),
    st.tuples(st.just("KernelDistance"), features, features, st.just({})),
)

TARGETS = {
    "pipeline calls": Target(calls, _pipeline, per_round=50),
    "schedulers": Target(
        st.tuples(
            st.booleans(),
            configs,
            st.integers(-1, 40) | scalars,
            st.none() | sequences | scalars,
        ),
        _schedulers,
    ),
    "metrics": Target(options, _metrics),
}
