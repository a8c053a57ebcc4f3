"""python -m ddpm_hf.toy"""

import sys

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings
from ddpm_hf.toy.settings import ToyConfig


@ending_in_one_sentence()
def main() -> None:
    """The command."""
    config = parse_settings(ToyConfig, sys.argv[1:], "Train a diffusion model of points in the plane and plot it.")
    from ddpm_hf.toy.points import run  # only now, as it loads torch

    distance, floor = run(config)
    print(
        f"{config.data}: energy distance {distance:.5f} to held-out data, {distance / floor:.2f} times that between "
        f"two sets of data on average ({floor:.5f}); pictures in {config.folder}"
    )


if __name__ == "__main__":
    main()
