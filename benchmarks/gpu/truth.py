"""Whether a GPU computes what the CPU computes in float32, and what diffusers computes: relative errors.

|found - expected| / |expected| of the network's output, of all gradients together and of the weights' change in a step
of Adam; float32 should lie below 1e-3, TF32 near 1e-3, bfloat16 below a few 1e-2. Samplers are compared by images, of
the same seeds; an image of a seed should not depend on its batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.device import PRECISIONS, autocast, error_of, precision
from benchmarks.gpu.sizes import Sizes
from benchmarks.record import Record, table
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.randomness import generators_of

LEARNING_RATE = 1e-3


def run(sizes: Sizes, device: torch.device, record: Record, attempt: Callable[..., None]) -> None:
    """A row for each network, implementation and precision, then one for each sampler."""
    for name, settings in sizes.networks.items():
        config = settings | {"dropout": 0.0}
        torch.manual_seed(0)
        theirs = diffusers.UNet2DModel(**config)
        ours = UNet2DModel(**config)
        ours.load_state_dict(theirs.state_dict())
        size = config["sample_size"]
        x, noise = torch.randn(2, sizes.truth_batch, config["in_channels"], size, size)
        inputs = x, torch.randint(1000, (sizes.truth_batch,)), noise
        expected = step_of(ours, *inputs, torch.device("cpu"), "float32")
        is_compiled = name == next(iter(sizes.networks))
        for kind in PRECISIONS:
            for who, unet in (("ours", ours), ("diffusers", theirs)):
                key = {"part": "truth", "network": name, "who": who, "precision": kind, "compiled": False}
                attempt(key, partial(errors, unet, inputs, expected, device, kind, None))
            if is_compiled and kind != "float32":
                key = {"part": "truth", "network": name, "who": "ours", "precision": kind, "compiled": True}
                attempt(key, partial(errors, ours, inputs, expected, device, kind, sizes.compiler))
    # The samplers on the small network, whose images the CPU can make as well.
    config = next(iter(sizes.networks.values()))
    torch.manual_seed(1)
    unet = UNet2DModel(**config).eval()
    attempt(
        {"part": "seeds", "what": "one image, alone and in a batch"},
        partial(alone_or_not, unet, device, sizes.truth_steps),
    )
    for what, eta in (("DDPM", None), ("DDIM, eta 0", 0.0), ("DDIM, eta 1", 1.0)):
        attempt({"part": "sampler", "sampler": what}, partial(images_of, unet, eta, device, sizes.truth_steps))


def errors(
    unet: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    expected: tuple[Tensor, Tensor, Tensor, float],
    device: torch.device,
    kind: str,
    compiler: str | None,
) -> dict[str, float]:
    """Relative errors of a training step, by what is compared."""
    with precision(kind):
        found = step_of(unet, *inputs, device, kind, compiler)
    names = ("output", "gradients", "weights")
    vectors = {name: error_of(a, b) for name, a, b in zip(names, found[:3], expected[:3], strict=True)}
    return {**vectors, "loss": abs(found[3] - expected[3]) / expected[3]}


def step_of(
    unet: Any, x: Tensor, t: Tensor, noise: Tensor, device: torch.device, kind: str, compiler: str | None = None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Output, gradients, the weights' change in a step of Adam, and loss; on a copy of the network."""
    copy = type(unet)(**{key: value for key, value in unet.config.items() if not key.startswith("_")})
    copy.load_state_dict(unet.state_dict())
    copy.to(device).train()
    if compiler is not None:
        torch.compiler.reset()
        copy.compile(backend=compiler)
    before = [weight.detach().clone() for weight in copy.parameters()]
    # A large epsilon: with the usual one a first step is the gradient's sign, and rounding flips that of small ones.
    optimizer = torch.optim.Adam(copy.parameters(), LEARNING_RATE, eps=1e-3, fused=True)
    with autocast(kind, device):
        output = copy(x.to(device), t.to(device)).sample
    loss = F.mse_loss(output.float(), noise.to(device))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = torch.cat([weight.grad.flatten() for weight in copy.parameters()])
    optimizer.step()
    changes = torch.cat([(w.detach() - b).flatten() for w, b in zip(copy.parameters(), before, strict=True)])
    return output.detach(), gradients, changes, float(loss.detach())


def alone_or_not(unet: UNet2DModel, device: torch.device, steps: int) -> dict[str, Any]:
    """The largest difference, in levels of 0..255, of an image of a seed drawn alone and among others."""
    with precision("float32"):
        together = drawn(unet, DDIMScheduler(), 0.0, device, steps, seeds=[3, 4, 5])
        alone = drawn(unet, DDIMScheduler(), 0.0, device, steps, seeds=[4])
    return levels(alone, together[1:2], "alone, in a batch")


def images_of(unet: UNet2DModel, eta: float | None, device: torch.device, steps: int) -> dict[str, Any]:
    """Of this package on the device against the CPU, and against diffusers' pipeline on the device."""
    ours = DDPMScheduler() if eta is None else DDIMScheduler()
    with precision("float32"):
        here = drawn(unet, ours, eta, device, steps, seeds=[0, 1, 2, 3])
        there = drawn(unet, ours, eta, torch.device("cpu"), steps, seeds=[0, 1, 2, 3])
        their_unet = diffusers.UNet2DModel.from_config(unet.config)
        their_unet.load_state_dict(unet.state_dict())
        kinds = (diffusers.DDPMPipeline, diffusers.DDPMScheduler), (diffusers.DDIMPipeline, diffusers.DDIMScheduler)
        pipeline, scheduler = kinds[eta is not None]
        theirs = pipeline(their_unet.to(device).eval(), scheduler())
        theirs.set_progress_bar_config(disable=True)
        options = {} if eta is None else {"eta": eta}
        images = theirs(
            batch_size=4, generator=generators_of(range(4)), num_inference_steps=steps, output_type="np", **options
        ).images
    by_diffusers = (torch.from_numpy(images) * 255).round().permute(0, 3, 1, 2)
    return levels(here, there, "CPU") | levels(here, by_diffusers, "diffusers")


def drawn(
    unet: UNet2DModel, scheduler: Any, eta: float | None, device: torch.device, steps: int, seeds: list[int]
) -> Tensor:
    """uint8 images of seeds on the CPU."""
    pipeline: Any = DDPMCustomPipeline(unet.to(device), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    found: Any = pipeline(seeds=seeds, num_inference_steps=steps, eta=eta or 0.0, output_type="uint8").images
    images: Tensor = found.cpu()
    return images


def levels(a: Tensor, b: Tensor, against: str) -> dict[str, Any]:
    """The largest difference in levels, and the share of numbers that differ at all."""
    difference = (a.double() - b.double()).abs()
    return {f"{against}: levels": float(difference.max()), f"{against}: share": float((difference > 0).double().mean())}


def report(rows: list[dict[str, Any]]) -> str:
    """Errors of a training step; then of images."""
    steps = [
        [row["network"], f"{row['who']}{', compiled' if row['compiled'] else ''}", row["precision"]]
        + [f"{row[name]:.1e}" for name in ("output", "gradients", "weights", "loss")]
        for row in rows
        if row["part"] == "truth" and "output" in row
    ]
    images = [
        [row.get("sampler") or row["what"], name.removesuffix(": levels"), row[name], f"{row[other]:.2%}"]
        for row in rows
        if row["part"] in ("sampler", "seeds")
        for name in row
        if name.endswith(": levels")
        for other in [name.replace("levels", "share")]
    ]
    return "\n\n".join(
        [
            table(["network", "whose", "precision", "output", "gradients", "weights' change", "loss"], steps),
            table(["sampler", "against", "largest difference, levels of 255", "numbers that differ"], images),
        ]
    )
