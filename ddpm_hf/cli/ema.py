"""An average of the weights of a run, of a length that is chosen after the training, or by the scores of several.

    ddpm-hf-ema runs/digits --sigma_rel 0.05
    ddpm-hf-ema runs/digits --scan fid
    ddpm-hf-ema runs/digits --scan fid --sigma_rel [0.03,0.06,0.12] --num_images 2000

The run must have been trained with ``--training.ema_sigma_rels [0.05,0.1]``, or with other lengths.
``accelerate launch --multi_gpu -m ddpm_hf.cli.ema`` draws and scores on several processes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings
from ddpm_hf.metrics.table import ScoreName
from ddpm_hf.settings import check
from ddpm_hf.training.lengths import check_length

LENGTHS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25)
"""Those that a scan tries where none are given, as far as the snapshots give them."""


@dataclass(frozen=True)
class EmaConfig:
    """Settings of ddpm-hf-ema.

    Args:
        run: Folder of a training run with training.ema_sigma_rels; it may still be training.
        sigma_rel: Relative length of the average: the standard deviation of its profile over the length of the run. A
            scan takes several; without any, it tries lengths from 0.02 to 0.25.
        scan: Score by which the best of several lengths is chosen, such as fid: images are drawn of each and scored as
            the run's own evaluation does. null builds one average and scores nothing.
        num_images: Images that a scan draws of each length; null takes evaluation.num_images of the run.
        output: Folder for the pipeline and its manifest.json, and for a scan's scan.png, table.md and metrics.json.
            null: a folder named after the length or score, in the folder averages of the run.
        threads: CPU threads of each process; null divides the usable cores among the processes of this machine.
        quiet: Do not tell how far it is: no bar in a terminal, and no lines where there is none.
    """

    run: Path
    sigma_rel: float | list[float] | None = None
    scan: ScoreName | None = None
    num_images: int | None = None
    output: Path | None = None
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        lengths = self.lengths
        if self.scan is None:
            expected = "one length, such as 0.05; give that, or --scan fid to try several"
            check(len(lengths) == 1, "sigma_rel", "null" if self.sigma_rel is None else self.sigma_rel, expected)
            expected = "null, as images are drawn for a --scan alone; leave it out, or give --scan fid"
            check(self.num_images is None, "num_images", self.num_images, expected)
        expected = "one length or several; leave it out to scan lengths from 0.02 to 0.25"
        check(len(lengths) > 0, "sigma_rel", self.sigma_rel, expected)
        check(len(set(lengths)) == len(lengths), "sigma_rel", self.sigma_rel, "different lengths")
        for length in lengths:
            check_length("sigma_rel", length)
        check(self.num_images is None or self.num_images >= 1, "num_images", self.num_images, "null or at least 1")
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "null or at least 1")

    @property
    def lengths(self) -> tuple[float, ...]:
        """The lengths to build, the shortest first."""
        if self.sigma_rel is None:
            return LENGTHS if self.scan is not None else ()
        return tuple(sorted(self.sigma_rel)) if isinstance(self.sigma_rel, list) else (self.sigma_rel,)


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    description = "Build an average of a run's weights whose length is chosen after the training."
    config = parse_settings(EmaConfig, sys.argv[1:], description, is_positional=True)
    from ddpm_hf.cli import averaging  # only now, as it loads torch

    averaging.run(config)


if __name__ == "__main__":
    main()
