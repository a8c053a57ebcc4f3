"""Train a denoising diffusion model, draw images from it, score them, and save it all.

    accelerate launch train_accelerate.py                                         the embedded digits, a few minutes
    accelerate launch train_accelerate.py --seed 1 --output_dir runs/digits-1     another seed, elsewhere
    accelerate launch --multi_gpu --num_processes 2 train_accelerate.py           two processes, also without a GPU
    python train_accelerate.py --help                                             every setting

Processes and precision come from the launcher (configs/accelerate), all else from a recipe (configs/train) and the
command line over it.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_hf.command_line import fail, parse_config
from ddpm_hf.config import Config
from ddpm_hf.data import ImageData, load_image_data
from ddpm_hf.ema import EMA
from ddpm_hf.images import image_grid, save_png
from ddpm_hf.losses import training_loss
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.sampling import sample_images
from ddpm_hf.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_hf.training import (
    Batches,
    MetricsLog,
    check_fit,
    environment,
    learning_rate,
    make_optimizer,
    seed_from,
    start_processes,
)
from ddpm_hf.unet import UNet2DModel


def main() -> None:
    config = parse_config(sys.argv[1:], default_recipe=Path(__file__).parent / "configs" / "train" / "digits.yaml")
    try:
        accelerator = start_processes(config.threads, config.training.gradient_accumulation_steps)
        show_progress = accelerator.is_main_process and not config.quiet and sys.stderr.isatty()
        if not show_progress:
            datasets.disable_progress_bars()
        with accelerator.local_main_process_first():
            data, held_out = load_data(config)
        unet, scheduler, sampler = build(config, accelerator.device)
        check_fit(data, unet, scheduler, config.training)
        if unet.config.num_class_embeds is None:
            data = dataclasses.replace(data, labels=None)
        batches = Batches(
            data, config.training.batch_size, len(scheduler), config.seed, config.data.random_flip, accelerator
        )
        if accelerator.is_main_process:
            config.output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, NotImplementedError, OSError) as error:
        fail(str(error))

    provenance = environment(accelerator)
    if accelerator.is_main_process:
        (config.output_dir / "config.yaml").write_text(config.to_yaml())
        write_json(config.output_dir / "environment.json", provenance)
        if not config.quiet:
            print(describe(config, data, unet, provenance))

    start = time.perf_counter()
    try:
        ema = train(config, accelerator, unet, scheduler, batches, show_progress)
    except FloatingPointError as error:
        fail(str(error), status=1)
    seconds = {"training": time.perf_counter() - start}

    start = time.perf_counter()
    evaluation = config.evaluation
    with ema.averaged_weights():
        images = sample_images(
            unet,
            sampler,
            evaluation.num_images,
            seed=first_image_seed(config),
            batch_size=evaluation.batch_size,
            class_labels=None if data.labels is None else data.labels[torch.arange(evaluation.num_images) % len(data)],
            accelerator=accelerator,
            show_progress=show_progress,
            eta=evaluation.eta,
        )
        seconds["sampling"] = time.perf_counter() - start
        if accelerator.is_main_process:
            DDPMCustomPipeline(unet=unet, scheduler=sampler).save_pretrained(config.output_dir)

    if accelerator.is_main_process:
        save_png(image_grid(images[:100], columns=10, scale=4), config.output_dir / "samples" / "grid.png")
        start = time.perf_counter()
        scores = {} if held_out is None else score(images, data, held_out)
        seconds["scoring"] = time.perf_counter() - start
        results = {
            "scores": scores,
            "num_images": len(images),
            "first_image_seed": first_image_seed(config),
            "seed": config.seed,
            "steps": config.training.steps,
            "seconds": seconds,
            "environment": provenance,
        }
        write_json(config.output_dir / "metrics.json", results)
        print(table(scores, len(images), len(data)) if scores else "No scores: only the digits' train split has them.")
        print(closing(config))
    accelerator.end_training()


def load_data(config: Config) -> tuple[ImageData, ImageData | None]:
    """The training images and, for the digits, as many held-out ones as will be drawn: real images to compare with."""
    data = load_image_data(config.data.name, config.data.split)
    if (config.data.name, config.data.split) != ("digits", "train"):
        return data, None
    wanted = config.evaluation.num_images
    held_out = load_image_data("digits", f"test[:{wanted}]")
    if not 4 <= wanted <= len(held_out):
        raise ValueError(
            f"evaluation.num_images is {wanted} and must be from 4, for precision and recall, to {len(held_out)}, "
            "the number of digits held out"
        )
    return data, held_out


def build(config: Config, device: torch.device) -> tuple[UNet2DModel, DDPMScheduler, DDIMScheduler]:
    """The network, the process that it learns to reverse, and the sampler, with its grid of timesteps."""
    torch.manual_seed(seed_from("weights", config.seed))
    unet = UNet2DModel(**config.model)
    scheduler = DDPMScheduler(**config.diffusion)
    sampler = DDIMScheduler.from_config(scheduler.config, timestep_spacing=config.evaluation.timestep_spacing)
    sampler.set_timesteps(config.evaluation.num_inference_steps, device)
    return unet, scheduler, sampler


def train(
    config: Config,
    accelerator: Accelerator,
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    batches: Batches,
    show_progress: bool,
) -> EMA:
    """Train ``unet`` in place, and return the average of its weights."""
    training, diffusion = config.training, scheduler.diffusion
    model, optimizer = accelerator.prepare(unet, make_optimizer(unet.parameters(), training))
    ema = EMA(unet.parameters(), training.ema_decays[0])
    log = MetricsLog(config.output_dir / "metrics.jsonl", accelerator, training.batch_size)
    model.train()

    progress = tqdm(range(training.steps), desc="training", unit="step", disable=not show_progress)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)

        losses = []
        for index in range(batches.num_micro_batches):
            batch = batches.micro_batch(step, index)
            torch.manual_seed(seed_from("dropout", config.seed, step, accelerator.process_index, index))
            with accelerator.accumulate(model):
                x_t = diffusion.q_sample(batch.x_0, batch.t, batch.noise)
                # prepare() has put autocast round the network and only there: noise, target and loss stay float32.
                output = model(x_t, batch.t, batch.labels).sample
                loss = training_loss(
                    diffusion,
                    output,
                    batch.x_0,
                    batch.noise,
                    batch.t,
                    prediction_type=scheduler.config.prediction_type,
                    weighting=training.loss_weighting,
                    min_snr_gamma=training.min_snr_gamma,
                ).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        ema.update()

        log.add(torch.stack(losses).mean(), grad_norm)
        if (step + 1) % training.log_every == 0 or step + 1 == training.steps:
            line = log.write(step + 1, learning_rate(step, training))
            progress.set_postfix(loss=f"{line['loss']:.4f}")
    model.eval()
    return ema


def score(images: Tensor, data: ImageData, held_out: ImageData) -> dict[str, dict[str, float]]:
    """FID, precision and recall of the samples and of the held-out images, both against the training images."""
    network = DigitsFeatures.load()
    train, real, fake = (network(part) for part in (data.images, held_out.images, images))
    scores = {"fid": {"samples": frechet_distance(fake, train), "held_out": frechet_distance(real, train)}}
    for name, of_samples, of_held_out in zip(
        ("precision", "recall"), precision_recall(train, fake), precision_recall(train, real), strict=True
    ):
        scores[name] = {"samples": of_samples, "held_out": of_held_out}
    for entry in scores.values():
        entry["ratio"] = entry["samples"] / entry["held_out"]
    return scores


def first_image_seed(config: Config) -> int:
    """Image i is drawn from seed first + i; runs of different seeds share none of them."""
    return config.seed * config.evaluation.num_images


def describe(config: Config, data: ImageData, unet: UNet2DModel, provenance: dict[str, Any]) -> str:
    channels, height, width = data.images.shape[1:]
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return (
        f"{data.name}: {len(data)} images of {channels} x {height} x {width}; UNet2DModel with {parameters:,} "
        f"parameters; {config.training.steps} steps of {config.training.batch_size} images\n"
        f"{provenance['processes']} process(es) on {provenance['device']}, {provenance['threads_per_process']} "
        f"thread(s) each, mixed precision {provenance['mixed_precision']}; writing to {config.output_dir}"
    )


def table(scores: dict[str, dict[str, float]], num_images: int, num_real: int) -> str:
    lines = [f"{'':<12}{'samples':>12}{'held out':>12}{'ratio':>8}"]
    for name, entry in scores.items():
        lines.append(f"{name:<12}{entry['samples']:>12.4f}{entry['held_out']:>12.4f}{entry['ratio']:>8.2f}")
    lines.append(
        f"({num_images} samples, and as many real images held out from training, against the {num_real} training "
        "images, in the features of the embedded digits network)"
    )
    return "\n".join(lines)


def closing(config: Config) -> str:
    folder = config.output_dir
    return (
        f"\nEverything is in {folder}: the pipeline, samples/grid.png, metrics.json. To draw from it:\n\n"
        f"    from ddpm_hf import DDPMCustomPipeline\n"
        f'    DDPMCustomPipeline.from_pretrained("{folder}")(num_inference_steps=100).images[0].save("image.png")\n'
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
