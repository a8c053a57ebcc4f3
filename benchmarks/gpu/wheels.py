"""Collect what a GPU machine without a network lacks: `python -m benchmarks.gpu.wheels FOLDER`.

The machine has Python 3.12 with torch, accelerate, numpy, pyarrow, matplotlib and scipy; the versions here are those of
setup.cfg's environment. There: `python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl`, and SITE on
the PYTHONPATH. About 29 MiB, beside the 18 MiB of CIFAR-10's parquet files.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    *("diffusers", "transformers", "huggingface_hub", "hf_xet", "datasets", "torchmetrics", "jsonargparse"),
    *("typeshed_client", "docstring_parser", "importlib_resources", "importlib_metadata", "lightning_utilities"),
    *("dill", "multiprocess", "xxhash", "fsspec", "filelock", "httpx2", "httpcore2", "truststore", "idna", "click"),
)
"""None of what they need is fetched by itself: each is named."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST = 64 - 18
"""MiB, of the 64 that travel, less the images."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*command, *(f"{package}=={version(package)}" for package in PACKAGES)], check=True)
    wheels = sorted(folder.glob("*.whl"))
    total = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {total:.1f} MiB, in {folder}")
    if total > MOST:
        sys.exit(f"more than {MOST} MiB")


if __name__ == "__main__":
    main()
