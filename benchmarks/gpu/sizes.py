"""How large everything is: for a GPU, and in small for a test of the whole on a CPU."""

from dataclasses import dataclass
from typing import Any

from benchmarks.unet import CIFAR10

SMALL: dict[str, Any] = CIFAR10 | {
    "block_out_channels": [32, 32, 64, 64],
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
"""CIFAR-10's network, thinner."""


@dataclass(frozen=True)
class Sizes:
    """All that differs between the full suite and the tiny one.

    Args:
        networks: name -> settings, the small one first and the one that is measured last.
        truth_batch: images in a comparison with the CPU.
        truth_steps: of the samplers in one.
        batches: batch sizes of the network's timings.
        rounds: of two things in turn.
        round_seconds: that a round of one thing should take.
        compiler: backend of torch.compile.
        compile_seconds: that two networks take at first.
        product: side of the matrices whose product is the ceiling of arithmetic.
        copied: bytes of the copy that is the ceiling of memory.
        sampling: (batch size, steps) of each measured pipeline call.
        features: (images, numbers of each) for the metrics.
        race_batch: images of a training step.
        classifier_epochs: of the network in whose features images are scored.
        images: the most that are read of a split.
        drawn: images that are scored.
        steps: of the sampler in the race.
        slices: into which each racer's seconds are cut.
    """

    networks: dict[str, dict[str, Any]]
    truth_batch: int
    truth_steps: int
    batches: tuple[int, ...]
    rounds: int
    round_seconds: float
    compiler: str
    compile_seconds: float
    product: int
    copied: int
    sampling: tuple[tuple[int, int], ...]
    features: tuple[int, int]
    race_batch: int
    classifier_epochs: int
    images: int
    drawn: int
    steps: int
    slices: int


FULL = Sizes(
    networks={"small": SMALL, "CIFAR-10": CIFAR10},
    truth_batch=4,
    truth_steps=20,
    batches=(128, 512),
    rounds=5,
    round_seconds=0.2,
    compiler="inductor",
    compile_seconds=110.0,
    product=8192,
    copied=2**32,
    sampling=((64, 20), (512, 20)),
    features=(50_000, 2048),
    race_batch=128,
    classifier_epochs=12,
    images=50_000,
    drawn=1024,
    steps=50,
    slices=8,
)
TINY = Sizes(
    networks={"small": SMALL | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}},
    truth_batch=2,
    truth_steps=2,
    batches=(2,),
    rounds=1,
    round_seconds=0.0,
    compiler="eager",
    compile_seconds=0.0,
    product=128,
    copied=2**20,
    sampling=((2, 2),),
    features=(300, 8),
    race_batch=4,
    classifier_epochs=1,
    images=600,
    drawn=16,
    steps=2,
    slices=2,
)
