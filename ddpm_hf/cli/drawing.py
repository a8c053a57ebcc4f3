"""What ddpm-hf-sample does, once its settings are known to be right."""

import math
import os
import shutil
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import datasets
import diffusers
import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from ddpm_hf.cli.sample import SampleConfig
from ddpm_hf.cli.show import save, show
from ddpm_hf.command_line import fail
from ddpm_hf.files import check_writable
from ddpm_hf.hub.push import command_to_finish, prepare_once, samples_push
from ddpm_hf.hub.repository import NOT_PUSHED, PushError, Repository
from ddpm_hf.images import Display
from ddpm_hf.launch import decided_by_main, each_on_its_own, environment, own_share, start_processes, usable_memory
from ddpm_hf.lock import only_writer
from ddpm_hf.manifest import FILE, check_same_settings, claim, read_manifest, weights_hash
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.pixels import EIGHT_BITS, TORCH
from ddpm_hf.progress import Progress
from ddpm_hf.sampling.compiling import NotCompiled, compile_for_drawing, is_worth_compiling, leave_uncompiled
from ddpm_hf.sampling.denoising import image_shape
from ddpm_hf.sampling.image_files import ImageFolder, sample_files
from ddpm_hf.sampling.plan import planned
from ddpm_hf.training.downloads import local_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run(config: SampleConfig) -> None:
    """Draw the images, push them if that was asked for, and say what was done; problems end the program."""
    try:
        accelerator = start_processes(config.threads)
        diffusers.utils.logging.disable_progress_bar()  # that of loading a model's two parts
        diffusers.utils.logging.set_verbosity_error()  # without it, diffusers also reports a missing model
        datasets.disable_progress_bars()
        with only_writer(config.output, accelerator):
            made = sample(config, accelerator)
        if accelerator.is_main_process and not config.quiet:
            print(f"{config.output}: {made}")
        if config.push_to_hub and accelerator.is_main_process:
            push = samples_push(config.output, config.push_to_hub, config.hub_license)
            print(push.to(Repository(config.push_to_hub, "dataset")))
        accelerator.end_training()
    except PushError as error:
        fail(
            f"the images are in {config.output} and were not pushed ({error}); "
            f"'{command_to_finish(config.output, config.push_to_hub or '', config.hub_license)}' finishes that",
            status=NOT_PUSHED,
        )
    except (ValueError, NotImplementedError, OSError) as error:
        fail(str(error))


def sample(config: SampleConfig, accelerator: Accelerator) -> str:
    """Make the images that are missing, each process its share of the batches, and say what was done.

    Batches are cut from the whole and a batch of which any image is missing is computed whole: so a run that was
    stopped ends with the same bits as one that was not, on any number of processes.

    Raises:
        ValueError: the settings do not fit the model or what the folder holds.
        OSError: the images cannot be written.
    """
    decided_by_main(accelerator, lambda: check_writable("--output", config.output / FILE))
    pipe, commit = load_pipeline(config, accelerator)
    pipe.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    plan = planned(config.request(), pipe.unet, pipe.scheduler, config.model)  # before anything is written
    pipe.register_modules(scheduler=plan.scheduler)  # so that the pipeline knows it as its own
    seeds, labels, options = plan.request.seeds, plan.labels, replace(plan.options, batch_size=config.batch_size)
    settings: dict[str, Any] = {
        "model": config.model,
        "revision": commit or config.revision,
        "weights_sha256": weights_hash(pipe.unet),
        "unet": _plain(pipe.unet.config),
        "scheduler": {"class": type(pipe.scheduler).__name__, **_plain(pipe.scheduler.config)},
        "timesteps": [float(t) for t in plan.scheduler.timesteps],
        "eta": config.eta,
        "class_labels": config.class_labels,
        "guidance_scale": config.guidance_scale,
        "first_seed": config.seed,
        "num_images": config.num_images,
        "batch_size": config.batch_size,
        "format": config.format,
        "show": config.show,
        "dtype": config.dtype,
    }
    is_compiled = decided_by_main(accelerator, lambda: _is_to_be_compiled(config, pipe))
    if is_compiled:
        settings["compile"] = True
    if config.guidance_interval is not None:
        settings["guidance_interval"] = config.guidance_interval
    if pipe.format != EIGHT_BITS:
        settings["pixels"] = pipe.format.to_dict()
    shape = image_shape(pipe.unet)
    if config.show is not None:
        display = _display(config, pipe, shape[0])
        of_picture = {"shown_channels": config.shown_channels, "colour_map": config.colour_map}
        settings |= {name: value for name, value in of_picture.items() if value is not None}
        decided_by_main(accelerator, lambda: check_same_settings(config.output, settings))
        if not accelerator.is_main_process:
            return ""
        if is_compiled:
            _compiled(config, pipe, accelerator)
        pictures = show(config.show, pipe.unet, pipe.scheduler, seeds, labels, options, display)
        claim(config.output, settings, environment(accelerator))
        return save(pictures, config.output)
    files = sample_files(config.output, config.format, pipe.format, shape[0])
    decided_by_main(accelerator, lambda: check_same_settings(config.output, settings))
    if config.push_to_hub:
        prepare_once(Repository(config.push_to_hub, "dataset", config.hub_private_repo), accelerator)

    def look() -> npt.NDArray[np.bool_]:
        files.remove_temporaries()
        missing = files.missing(seeds)
        check_room(config, int(missing.sum()), math.prod(shape) * TORCH[pipe.format.dtype].itemsize)
        return missing

    missing = decided_by_main(accelerator, look)  # so that all share out the same batches
    if is_compiled and missing.any() and not _compiled(config, pipe, accelerator):
        is_compiled = False
        del settings["compile"]
    decided_by_main(accelerator, lambda: claim(config.output, settings, environment(accelerator)))
    size = config.batch_size
    batches = [
        seeds[start : start + size] for start in range(0, len(seeds), size) if missing[start : start + size].any()
    ]
    if is_compiled and len(seeds) > size:  # for batches of this size; what lies beyond the last seed is not kept
        batches = [range(batch.start, batch.start + size) for batch in batches]
        labels = None if labels is None else torch.cat([labels, labels[-1:].expand(size)])
    count = int(missing.sum())

    started = time.perf_counter()
    try:
        each_on_its_own(accelerator, lambda: _draw(config, accelerator, pipe, files, batches, missing, labels))
    except (ValueError, OSError) as error:
        made = count - int(files.missing(seeds).sum())
        raise OSError(f"{error}; {made} of {count} images were made and stay, and the same command goes on") from error
    seconds = time.perf_counter() - started
    decided_by_main(accelerator, lambda: files.finish(seeds, labels))
    if not count:
        return f"all {len(seeds)} images were there"
    kept = f", {len(seeds) - count} were there" if count < len(seeds) else ""
    return f"{count} images made in {seconds:.1f} s ({count / seconds:.2f} images/s){kept}"


def _is_to_be_compiled(config: SampleConfig, pipe: DDPMCustomPipeline) -> bool:
    """Whether the settings say so, or else the folder's manifest, or else the amount of work."""
    if config.compile != "auto":
        return config.compile
    begun = read_manifest(config.output)
    if begun is not None:
        return bool(begun["settings"].get("compile"))
    passes = config.num_images * len(pipe.scheduler.timesteps) * (1 if config.guidance_scale == 1 else 2)
    return config.show is None and is_worth_compiling(pipe.unet, passes)


def _images_of_a_pass(config: SampleConfig) -> int:
    """How many images go through the network at once: with guidance each does twice."""
    return min(config.batch_size, config.num_images) * (1 if config.guidance_scale == 1 else 2)


def _compiled(config: SampleConfig, pipe: DDPMCustomPipeline, accelerator: Accelerator) -> bool:
    """Compile the network on all processes, or on none: whether that was done.

    Raises:
        NotCompiled: it cannot be, and was asked for.
    """
    try:
        if accelerator.is_main_process and not config.quiet:
            print("compiling the network", file=sys.stderr)
        each_on_its_own(accelerator, lambda: compile_for_drawing(pipe.unet, _images_of_a_pass(config)))
    except NotCompiled as error:
        if config.compile is True:
            raise ValueError(f"{error}; give --compile false") from error
        leave_uncompiled(pipe.unet)
        if accelerator.is_main_process:
            print(f"Note: {error}, so it is used as it is.", file=sys.stderr)
        return False
    return True


def _display(config: SampleConfig, pipe: DDPMCustomPipeline, channels: int) -> Display:
    """How pictures show the images, which are 8 bits there, of whatever type the model's own are.

    Raises:
        ValueError: they have no such channels.
    """
    shown = None if config.shown_channels is None else tuple(config.shown_channels)
    display = Display(replace(EIGHT_BITS, alpha=pipe.format.alpha), shown, config.colour_map)
    display.check(channels)
    return display


def check_room(config: SampleConfig, count: int, raw: int) -> None:
    """Refuse images that the disk or the memory surely cannot hold, before the first one is drawn.

    Args:
        config: The settings.
        count: How many images are to be drawn.
        raw: Bytes of the values of each.

    Raises:
        ValueError: with the number of images that there is room for.
    """
    above = next(folder for folder in (config.output, *config.output.absolute().parents) if folder.exists())
    # A file takes whole blocks; and no image that anyone wants is packed to less than an eighth.
    block = os.statvfs(above).f_frsize if hasattr(os, "statvfs") else 4096  # the usual one of Windows
    each, free = max(block, raw // 8), shutil.disk_usage(above).free
    if count * each > free:
        raise ValueError(
            f"num_images is {config.num_images}, and {count} more images need at least {count * each / 1e9:.1f} GB in "
            f"{config.output}, where {free / 1e9:.1f} GB are free; there is room for {free // each}"
        )
    memory = usable_memory()
    if config.format == "npz" and config.num_images * raw > memory:
        raise ValueError(
            f"num_images is {config.num_images}, and an npz is put together in memory, which holds {memory // raw} "
            "images of this size at most; give --format npy, parquet or png"
        )


def load_pipeline(config: SampleConfig, accelerator: Accelerator) -> tuple[DDPMCustomPipeline, str | None]:
    """The pipeline, and the commit it came from, for a model on the Hub."""
    folder, commit = local_folder(config.model, config.revision, accelerator)
    pipe = DDPMCustomPipeline.from_pretrained(folder, dtype=DTYPES[config.dtype])
    return pipe, commit


def _draw(
    config: SampleConfig,
    accelerator: Accelerator,
    pipe: DDPMCustomPipeline,
    files: ImageFolder,
    batches: list[range],
    missing: npt.NDArray[np.bool_],
    labels: torch.Tensor | None,
) -> None:
    told = Progress("sampling", int(missing.sum()), "image", accelerator.is_main_process and not config.quiet)
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as writer, told:
        for batch in own_share(batches, accelerator):
            images: torch.Tensor = pipe(
                seeds=batch,
                num_inference_steps=config.num_inference_steps,
                eta=config.eta,
                class_labels=None if labels is None else labels[batch.start - config.seed : batch.stop - config.seed],
                guidance_scale=config.guidance_scale,
                guidance_interval=config.guidance_interval,
                output_type="values",
                return_dict=False,
            )[0].cpu()
            start = batch.start - config.seed
            wanted = np.flatnonzero(missing[start : start + len(batch)]).tolist()
            writing.append(writer.submit(files.write, [batch[i] for i in wanted], images[wanted]))
            if len(writing) > 2:  # so that a slow disk holds the drawing back, and memory stays bounded
                writing.popleft().result()
            told.advance(len(wanted) * accelerator.num_processes)
        for written in writing:
            written.result()


def _plain(config: Any) -> dict[str, Any]:
    """The settings of a scheduler or network without what diffusers notes beside them."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
