"""python -m ddpm_hf.toy"""

import sys

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings
from ddpm_hf.toy.settings import ToyConfig


@ending_in_one_sentence()
def main() -> None:
    """The command."""
    config = parse_settings(ToyConfig, sys.argv[1:], "Train a diffusion model of points in the plane and plot it.")
    from ddpm_hf.toy.points import MOVED, run  # only now, as it loads torch

    found = run(config)
    print(
        f"{config.data}: energy distance {found.energy:.5f} to held-out data, {found.energy / found.energy_floor:.2f} "
        f"times that between two sets of data on average ({found.energy_floor:.5f}); Wasserstein distance of "
        f"{min(config.num_points, MOVED):,} points {found.moved:.4f}, {found.moved / found.moved_floor:.2f} times that "
        f"of data ({found.moved_floor:.4f}); pictures in {config.folder}"
    )


if __name__ == "__main__":
    main()
