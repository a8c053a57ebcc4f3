"""What a run says of itself: before the first step, in metrics.json, and at its end."""

import math
from typing import Any

from ddpm_hf.data.sources import ImageData, ImageSource
from ddpm_hf.data.streaming import StreamedImages
from ddpm_hf.metrics.evaluation import Results
from ddpm_hf.training.setup import Setup


def described(setup: Setup) -> str:
    """Summary of the run before it starts, for a person to read."""
    training, place = setup.config.training, setup.environment
    lines = [
        described_data(setup.data),
        f"{described_network(setup)}; {training.steps} steps of {training.batch_size} images",
        f"{place['processes']} process(es) on {place['device']}, {place['threads_per_process']} thread(s) each, "
        f"{setup.batches.micro_batch_size} images per process and pass, {training.gradient_accumulation_steps} "
        f"pass(es) per step, mixed precision {place['mixed_precision']}; writing to {setup.config.output_dir}",
    ]
    if setup.config.evaluation.extractor:
        lines.append(_described_evaluation(setup))
    if "base_model" in place and not setup.resumed:
        base, commit = place["base_model"], place["base_model"]["commit"]
        of_commit = f" at commit {commit[:12]}" if commit else ""
        kept = f"{base['weights_kept']:,} of {base['weights']:,} weights are its"
        lines.append(f"starting from {setup.config.init_from}{of_commit}: {kept}")
    if setup.resumed:
        lines.append(f"going on from {setup.resumed}, after step {setup.state.step} of {training.steps}")
    return "\n".join(lines)


def described_data(data: ImageSource) -> str:
    """How many images and classes were found, and what was left out."""
    count = f"{len(data)} images" if isinstance(data, ImageData) else "images"
    classes = "" if data.num_classes is None else f" in {data.num_classes} classes"
    remark = f"; {data.remark}" if isinstance(data, ImageData | StreamedImages) and data.remark else ""
    return f"{data.name}: {count} of {' x '.join(map(str, data.shape))}{classes}{remark}"


def described_network(setup: Setup) -> str:
    """The network's size, and what of it was chosen for the images."""
    parameters = sum(parameter.numel() for parameter in setup.state.unet.parameters())
    text, model = f"UNet2DModel with {parameters:,} parameters", setup.config.model
    if "block_out_channels" not in setup.chosen:
        return f"{text}, {', '.join(setup.chosen)} as the images have it" if setup.chosen else text
    size, patch = model["sample_size"], model["patch_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    levels = [
        f"{height // patch >> i} x {width // patch >> i}"
        for i, block in enumerate(model["down_block_types"])
        if block.startswith("Attn")
    ]
    attention = " and ".join(levels) or "in the middle block alone"
    widths = ", ".join(map(str, model["block_out_channels"]))
    return f"{text}, chosen for {height} x {width} pixels (channels {widths}; attention {attention})"


def _described_evaluation(setup: Setup) -> str:
    evaluation, training = setup.config.evaluation, setup.config.training
    rounds = math.ceil(training.steps / evaluation.every) if evaluation.every else 1
    passes = rounds * evaluation.num_images * evaluation.num_inference_steps
    share = passes / (3 * training.steps * training.batch_size)  # a backward pass costs two forward ones
    return (
        f"scores: {rounds} round(s) of {evaluation.num_images} images in {evaluation.num_inference_steps} steps, "
        f"{passes:,} passes of an image through the network, {share:.1%} of what the training takes"
    )


def results_of(setup: Setup, results: Results, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        **results.to_dict(),
        **setup.evaluation.provenance,
        "best": setup.state.best,
        "first_image_seed": setup.evaluation.first_seed,
        "seed": setup.config.seed,
        "steps": setup.state.step,
        "skipped_steps": setup.state.skipped,
        "seconds": seconds,
        "environment": setup.environment,
        "history": setup.history,
    }


def reported(setup: Setup, results: Results) -> str:
    """The scores, and how to use the model, for a person to read."""
    folder, pixels = setup.config.output_dir, setup.data.format
    is_picture = setup.data.shape[0] - pixels.alpha in (1, 3) and pixels.dtype == "uint8"
    drawn = (
        'pipe(num_inference_steps=100).images[0].save("image.png")'
        if is_picture
        else f'pipe(num_inference_steps=100, output_type="values").images  # {pixels.dtype}, in the units of the data'
    )
    return (
        f"{setup.evaluation.table(results)}\n\n"
        f"Everything is in {folder}: the pipeline, samples/grid.png, metrics.json. To draw from it:\n\n"
        f"    from ddpm_hf import DDPMCustomPipeline\n"
        f'    pipe = DDPMCustomPipeline.from_pretrained("{folder}")\n'
        f"    {drawn}\n"
    )
