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

from ddpm_hf.config import Config, fail, parse_config
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
        data, unet, scheduler, batches = build(config, accelerator)
    except (ValueError, NotImplementedError) as error:
        fail(str(error))

    provenance = environment(accelerator)
    if accelerator.is_main_process:
        config.output_dir.mkdir(parents=True, exist_ok=True)
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
    sampler = DDIMScheduler.from_config(scheduler.config, timestep_spacing=evaluation.timestep_spacing)
    sampler.set_timesteps(evaluation.num_inference_steps, accelerator.device)
    with ema.averaged_weights():
        images = sample_images(
            unet,
            sampler,
            evaluation.num_images,
            seed=first_image_seed(config),
            batch_size=evaluation.batch_size,
            class_labels=None if data.labels is None else data.labels[: evaluation.num_images],
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
        scores = score(images, data) if is_scored(config) else {}
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
        print(table(scores, len(images), len(data)) if scores else f"{data.name} is not scored: only the digits are.")
        print(closing(config))
    accelerator.end_training()


def build(config: Config, accelerator: Accelerator) -> tuple[ImageData, UNet2DModel, DDPMScheduler, Batches]:
    """The data, the network, the noise schedule and the batches; a ValueError says what does not fit together."""
    with accelerator.main_process_first():
        data = load_image_data(config.data.name, config.data.split)
    scheduler = DDPMScheduler(**config.diffusion)
    torch.manual_seed(seed_from("weights", config.seed))
    unet = UNet2DModel(**config.model)
    check_fit(data, unet, scheduler)
    if unet.config.num_class_embeds is None:
        data = dataclasses.replace(data, labels=None)
    batches = Batches(
        data, config.training.batch_size, len(scheduler), config.seed, config.data.random_flip, accelerator
    )
    return data, unet, scheduler, batches


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
    ema = EMA(unet.parameters(), training.ema_decay)
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


def is_scored(config: Config) -> bool:
    """Whether the embedded network can judge the samples: it knows digits, and needs some that were not trained on."""
    return config.data.name == "digits" and config.data.split == "train"


def score(images: Tensor, data: ImageData) -> dict[str, dict[str, float]]:
    """FID, precision and recall of the samples and of as many held-out images, both against the training images."""
    network = DigitsFeatures.load()
    held_out = load_image_data("digits", "test").images[: len(images)]
    train, real, fake = (network(part) for part in (data.images, held_out, images))
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
    return (
        f"\nEverything is in {config.output_dir}: the pipeline, samples/grid.png, metrics.json. To draw from it:\n\n"
        f"    from ddpm_hf import DDPMCustomPipeline\n"
        f'    DDPMCustomPipeline.from_pretrained("{config.output_dir}")(num_inference_steps=100).images[0].show()\n'
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
