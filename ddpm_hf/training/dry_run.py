"""A run in small: what it is, and what it says of the full one."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from ddpm_hf.lock import check_folder, only_writer
from ddpm_hf.progress import duration
from ddpm_hf.training.log import read_log
from ddpm_hf.training.needs import number_of_snapshots
from ddpm_hf.training.report import described_data, described_network
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build
from ddpm_hf.training.snapshots import FOLDER

STEPS = 3
"""The first is slower than all others, the rest are timed."""
IMAGES = 8
INFERENCE_STEPS = 5
"""At most; the time of an image is in proportion to them."""


def shortened(config: Config, folder: Path) -> Config:
    """A few steps, a save, and a tiny sample and score of it, in another folder."""
    return replace(
        config,
        output_dir=folder,
        resume="never",
        quiet=True,
        push_to_hub=False,
        hub_model_id=None,
        training=replace(
            config.training,
            steps=STEPS,
            log_every=1,
            checkpoint_every=None,
            sample_every=None,
            ema_snapshot_every=STEPS if config.training.ema_sigma_rels else None,
            trackers=[],
        ),
        evaluation=replace(
            config.evaluation,
            num_images=IMAGES,
            grid_images=IMAGES,
            every=None,
            num_inference_steps=min(INFERENCE_STEPS, config.evaluation.num_inference_steps),
        ),
    )


def dry_run(config: Config, accelerator: Accelerator, train: Callable[[Run], None]) -> None:
    """Take a few steps, save, draw and score, and print what the full run would cost.

    Args:
        config: Settings of the full run.
        accelerator: Its processes.
        train: The loop.
    """
    check_folder(config.output_dir)
    place = config.output_dir.resolve()
    folder = place.with_name(f".{place.name}.dry_run")
    if accelerator.is_main_process and not config.quiet:
        print(f"A dry run of {STEPS} steps, one save and {IMAGES} images", flush=True)
    with only_writer(folder, accelerator):
        try:
            run = Run(build(shortened(config, folder), accelerator))
            train(run)
            if config.training.compile:  # for drawing too; once, so not in the time of an image
                run.setup.evaluation.draw(run.state.unet, run.config.evaluation.num_images)
            run.finish(*run.score())
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                print(f"{described_data(run.setup.data)}\n{described_network(run.setup)}")
            print(cost_of(config, folder, run.seconds, accelerator.num_processes))
        finally:
            if accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)


def cost_of(config: Config, folder: Path, seconds: dict[str, float], processes: int) -> str:
    """What the full run costs, from the figures of the short one.

    Args:
        config: Settings of the full run.
        folder: Folder of the short run.
        seconds: Time that the short run spent, by kind of work.
        processes: Number of processes, the same in both runs.
    """
    training, evaluation = config.training, config.evaluation
    lines = read_log(folder / "metrics.jsonl")
    step = sum(training.batch_size / line["images_per_second"] for line in lines[1:]) / len(lines[1:])
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / f"step-{STEPS}").rglob("*") if path.is_file())
    saves = math.ceil(training.steps / (training.checkpoint_every or training.steps))
    grids = training.steps // training.sample_every if training.sample_every else 0
    rounds = 1 + (training.steps // evaluation.every if evaluation.every else 0)
    images = grids * evaluation.grid_images + rounds * evaluation.num_images
    passes = evaluation.num_inference_steps / min(INFERENCE_STEPS, evaluation.num_inference_steps)
    image = seconds["sampling"] / IMAGES * passes
    total = training.steps * step + saves * seconds["saving"] + images * image + rounds * seconds["scoring"]
    kept, snapshots = min(saves, training.checkpoints_total_limit), number_of_snapshots(training)
    beside = sum(path.stat().st_size for path in (folder / FOLDER).glob("*")) * snapshots / 2**20
    of_averages = f"; {snapshots} snapshots of averages, {beside:.0f} MiB" if snapshots else ""
    return "\n".join(
        [
            f"After {STEPS} steps, one save and {IMAGES} images, of which nothing is left: the full run takes about",
            f"  training   {duration(training.steps * step):>12}   {training.steps} steps of {step:.3g} s",
            f"  saving     {duration(saves * seconds['saving']):>12}   {saves} checkpoint(s) of {size / 2**20:.0f} "
            f"MiB; {kept} kept, {kept * size / 2**20:.0f} MiB{of_averages}",
            f"  sampling   {duration(images * image):>12}   {images} images of {image:.3g} s, or less: larger batches "
            "are faster",
            f"  scoring    {duration(rounds * seconds['scoring']):>12}",
            f"  in all     {duration(total):>12}   on {processes} process(es): {total * processes / 3600:.3g} hours of "
            f"one, {max(line['memory_gib'] for line in lines):.2f} GiB of memory each",
        ]
    )
