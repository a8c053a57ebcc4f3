"""Our UNet and diffusers' UNet2DModel of the same weights at CIFAR-10's configuration: time, memory and the roofline.

Called in turn, medians, and the median of the rounds' own ratios: below 1 is faster than diffusers. A training step is
forward, with dropout, and backward. "tuned" lets cuDNN try its algorithms first (torch.backends.cudnn.benchmark); "half
norms" is an experiment, in which our norms stay in bfloat16 where autocast has them in float32.

The shares are of what this device reached in the same run: "arithmetic" is the operations of a step's convolutions and
products over the rate of one large product, "memory" the bytes of all its operations, each on its own as in eager mode,
over the rate of one large copy. What neither share accounts for is waiting, and copies between layouts inside cuDNN.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.gpu.device import (
    autocast,
    ceilings,
    demands,
    error_of,
    kernels,
    peak_bytes,
    precision,
    repeats_for,
    synchronize,
    timed,
)
from benchmarks.gpu.sizes import Sizes
from benchmarks.measure import in_turn, ratio_cell, ratio_of
from benchmarks.record import Record, table
from ddpm_hf import UNet2DModel
from ddpm_hf.models.fused import ActivatedGroupNorm, _NormSiLU

EAGER = ("eager", "channels_last")
TRIED = ("half norms",)
"""What the package does not do: our norms stay in bfloat16 under autocast, which has them in float32."""


def cells(sizes: Sizes) -> list[tuple[str, int, str, str]]:
    """(precision, batch size, what, variant), what matters most first: compiling takes a minute each."""
    first, *others = sizes.batches
    training, inference = CALLS
    compiled = ("compiled", "compiled channels_last")
    found = [("bf16", size, what, how) for size in sizes.batches for what in CALLS for how in EAGER]
    found += [("bf16", first, training, how) for how in (*TRIED, "tuned", "channels_last tuned")]
    found += [("bf16", first, inference, how) for how in TRIED]
    found += [("tf32", first, what, how) for what in CALLS for how in EAGER]
    found += [("bf16", first, training, how) for how in compiled]
    found += [("bf16", first, inference, how) for how in compiled]
    found += [("tf32", size, what, "eager") for size in others for what in CALLS]
    found += [("bf16", size, training, "compiled") for size in others]
    found += [("tf32", first, training, "compiled")]
    return found


def run(
    sizes: Sizes,
    device: torch.device,
    record: Record,
    attempt: Callable[..., None],
    is_time_left: Callable[[float], bool],
) -> None:
    """A row of the ceilings, and one for each cell while there is time; a compiled one as long as the last was."""
    attempt({"part": "ceilings"}, partial(ceilings, sizes, device))
    config = list(sizes.networks.values())[-1]
    first = sizes.batches[0]
    longest = {True: sizes.compile_seconds, False: 0.0}
    for kind, size, what, how in cells(sizes):
        key = {"part": "network", "precision": kind, "batch": size, "what": what, "variant": how}
        is_compiled = how.startswith("compiled")
        if record.find(**key) is not None:
            continue
        if not is_time_left(longest[is_compiled]):
            print(f"no time left for {' '.join(map(str, key.values()))}")
            continue
        start = time.perf_counter()
        attempt(key, partial(compared, config, sizes, device, kind, size, what, how))
        longest[is_compiled] = max(longest[is_compiled], time.perf_counter() - start)
    for who in ("ours", "diffusers"):
        key = {"part": "kernels", "precision": "bf16", "batch": first, "who": who}
        attempt(key, partial(kernels_of, config, device, first, who))


def networks(config: dict[str, Any], device: torch.device, how: str, compiler: str) -> dict[str, Any]:
    """Ours and diffusers' of the same weights, made ready."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**config)
    ours = UNet2DModel(**config)
    ours.load_state_dict(theirs.state_dict())
    for unet in (ours, theirs):
        unet.to(device, memory_format=torch.channels_last if "channels_last" in how else torch.contiguous_format)
        if how.startswith("compiled"):
            unet.compile(backend=compiler)
    for module in ours.modules():
        if how == "half norms" and isinstance(module, ActivatedGroupNorm):
            module.forward = partial(half_norm, module)  # type: ignore[method-assign]
    return {"ours": ours, "theirs": theirs}


def half_norm(norm: ActivatedGroupNorm, x: Tensor) -> Tensor:
    """Norm and SiLU in x's own precision, whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        found: Tensor = _NormSiLU.apply(x, weight, bias, norm.num_groups, norm.eps)  # type: ignore[no-untyped-call]
    return found


def compared(
    config: dict[str, Any], sizes: Sizes, device: torch.device, kind: str, size: int, what: str, how: str
) -> dict[str, Any]:
    """Times, memory, demands on the device, and how far the outputs lie apart."""
    torch.compiler.reset()
    side = config["sample_size"]
    layout = torch.channels_last if "channels_last" in how else torch.contiguous_format
    x = torch.randn(size, config["in_channels"], side, side, device=device).to(memory_format=layout)
    t = torch.randint(1000, (size,), device=device)
    torch.backends.cudnn.benchmark = "tuned" in how
    found: dict[str, Any] = {}
    try:
        with precision(kind):
            unets = networks(config, device, how, sizes.compiler)
            calls, outputs = {}, []
            for who, unet in unets.items():
                start = time.perf_counter()
                call = partial(CALLS[what], unet, x, t, kind)
                outputs.append(call())
                synchronize()
                found[f"{who}_first_s"] = time.perf_counter() - start
                peak = peak_bytes(call)
                found[f"{who}_mib"] = None if peak is None else peak / 2**20
                if how == "eager":
                    found |= {f"{who}_{name}": value for name, value in demands(call).items()}
                calls[f"{who}_ms"] = partial(timed, call, repeats_for(call, sizes.round_seconds))
            ms = in_turn(calls, sizes.rounds, is_warm=True)
    finally:
        torch.backends.cudnn.benchmark = False
    medians = {name: statistics.median(times) for name, times in ms.items()}
    # In training the two drop different numbers out.
    apart = {"apart": error_of(*outputs)} if what == "forward" else {}
    return {**medians, **ratio_of(ms["ours_ms"], ms["theirs_ms"]), **apart, **found}


@torch.no_grad()
def forward(unet: Any, x: Tensor, t: Tensor, kind: str) -> Tensor:
    """The network in evaluation mode."""
    with autocast(kind, x.device):
        output: Tensor = unet.eval()(x, t).sample
    return output


def training_step(unet: Any, x: Tensor, t: Tensor, kind: str) -> Tensor:
    """Forward with dropout, and backward; the optimizer would be the same for both."""
    with autocast(kind, x.device):
        output: Tensor = unet.train()(x, t).sample
    output.float().square().mean().backward()  # type: ignore[no-untyped-call]
    unet.zero_grad()
    return output.detach()


CALLS = {"training step": training_step, "forward": forward}


def kernels_of(config: dict[str, Any], device: torch.device, size: int, who: str) -> dict[str, Any]:
    """The longest kernels of an eager training step in bfloat16."""
    unet = networks(config, device, "eager", "")["ours" if who == "ours" else "theirs"]
    side = config["sample_size"]
    x = torch.randn(size, config["in_channels"], side, side, device=device)
    t = torch.randint(1000, (size,), device=device)
    with precision("bf16"):
        return kernels(partial(training_step, unet, x, t, "bf16"))


def report(rows: list[dict[str, Any]]) -> str:
    """What the device reached, times, the roofline, and kernels."""
    peaks = next((row for row in rows if row["part"] == "ceilings" and "copy_gbs" in row), {})
    parts = []
    if peaks:
        parts.append(
            f"Reached: {peaks['bf16_tflops']:.0f} TFLOP/s in bfloat16, {peaks['tf32_tflops']:.0f} in TF32, "
            f"{peaks['float32_tflops']:.0f} in float32; a copy moves {peaks['copy_gbs']:,.0f} GB/s, read and written."
        )
    timings = [row for row in rows if row["part"] == "network" and "ratio" in row]
    keys = ("what", "batch", "precision", "variant")
    heads = [*keys, "ours, ms", "diffusers, ms", "ratio", "ours, GiB", "diffusers, GiB", "outputs apart"]
    parts.append(table(heads, [_timing(row, keys) for row in timings]))
    shares = [
        [row[key] for key in keys[:3]] + [who, row[f"{name}_tflop"], row[f"{name}_gb"], *_shares(row, name, peaks)]
        for row in timings
        if "ours_tflop" in row and peaks
        for name, who in (("ours", "ours"), ("theirs", "diffusers"))
    ]
    parts.append(table([*keys[:3], "whose", "TFLOP", "GB", "arithmetic", "memory"], shares))
    for row in rows:
        if row["part"] == "kernels" and row.get("kernels"):
            parts.append(
                f"The longest of the {row['count']:,} kernels of a training step of {row['who']}, eager, bf16, batch "
                f"{row['batch']}; together they take {row['busy_ms']:.1f} ms:"
            )
            cells = [[f"`{k['kernel'][:72]}`", k["count"], k["ms"], f"{k['share']:.0%}"] for k in row["kernels"]]
            parts.append(table(["kernel", "times", "ms", "share"], cells))
    return "\n\n".join(parts)


def _timing(row: dict[str, Any], keys: tuple[str, ...]) -> list[object]:
    memory = [None if row[f"{who}_mib"] is None else row[f"{who}_mib"] / 1024 for who in ("ours", "theirs")]
    apart = f"{row['apart']:.1e}" if "apart" in row else None
    return [*(row[key] for key in keys), row["ours_ms"], row["theirs_ms"], ratio_cell(row), *memory, apart]


def _shares(row: dict[str, Any], who: str, peaks: dict[str, Any]) -> list[str]:
    """Of the ceilings of arithmetic and of memory."""
    seconds = row[f"{who}_ms"] / 1000
    rates = (
        row[f"{who}_tflop"] / seconds / peaks[f"{row['precision']}_tflops"],
        row[f"{who}_gb"] / seconds / peaks["copy_gbs"],
    )
    return [f"{rate:.0%}" for rate in rates]
