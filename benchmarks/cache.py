"""Building the image cache, and how often four processes that open it hold it in memory.

The peak is what building takes above what the process had before. Of the cache's mapping in each reader's memory, Rss
counts all pages that are there, and Pss divides each by the number of processes that share it, so the sum of Pss is
what the machine really holds. The data are a parquet file of encoded images, such as Fashion-MNIST's on the Hub; and
the same images as PNG of 16 bits, each value times 257.
"""

import argparse
import multiprocessing
import multiprocessing.synchronize
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from benchmarks.measure import MIB, in_new_process, peak_memory, resident_memory
from benchmarks.record import Bar, Record, table
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images

PROCESSES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The data; no rounds, as each build is a new one."""
    parser.add_argument("--data", type=Path, required=True, help="a parquet file of images")
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for the build, and one for each reader."""
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(name=str(arguments.data.resolve()), cache_dir=Path(folder) / "images")
        built, readers = in_processes(Path(folder), config)
        deep = write_16_bits(arguments.data, Path(folder) / "deep.parquet")
        built_deep = in_new_process(build, DataConfig(name=str(deep), cache_dir=config.cache_dir))
    record.add({"what": "build", **built})
    record.add({"what": "build", **built_deep})
    for reader in readers:
        record.add({"what": "read", **reader})


def write_16_bits(source: Path, target: Path) -> Path:
    """A copy of a parquet file of grey images whose PNGs have 16 bits."""
    images = []
    for image in pyarrow.parquet.read_table(source, columns=["image"])["image"].to_pylist():
        values = np.asarray(Image.open(BytesIO(image["bytes"])).convert("L"))
        file = BytesIO()
        Image.fromarray(values.astype(np.uint16) * 257).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    pyarrow.parquet.write_table(pa.table({"image": images}), target)
    return target


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """16 bits at half the speed of 8."""
    eight, sixteen = (row["images_per_second"] for row in rows if row["what"] == "build")
    return [Bar("decoding 16 bits, images a second over those of 8 bits", sixteen / eight, at_least=0.5)]


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the build and one of the readers."""
    keys = ("images", "mib", "seconds", "images_per_second", "peak_mib_above_before")
    built = [
        ["x".join(map(str, row["shape"])), row["type"], *(row[key] for key in keys)]
        for row in rows
        if row["what"] == "build"
    ]
    heads = ["shape", "type", "images", "MiB", "seconds", "images/s", "peak memory, MiB"]
    columns = ("open_seconds", "rss_mib", "pss_mib")
    readers = [[row[key] for key in columns] for row in rows if row["what"] == "read"]
    total = ["", *(sum(reader[i] for reader in readers) for i in (1, 2))]
    cells = [[str(i), *reader] for i, reader in enumerate(readers)]
    return "\n\n".join(
        [
            table(heads, built),
            table(["process", "seconds to open", "Rss, MiB", "Pss, MiB"], [*cells, ["all", *total]]),
        ]
    )


def build(config: DataConfig) -> dict[str, Any]:
    """Build the cache in this process: time, and memory at its highest above what it was before."""
    load_cached_images(DataConfig(cache_dir=config.cache_dir))  # loads all code
    before = resident_memory()
    start = time.perf_counter()
    data = load_cached_images(config)
    seconds = time.perf_counter() - start
    return {
        "images": len(data),
        "shape": list(data.shape),
        "type": data.format.dtype,
        "mib": data.images.nbytes / MIB,
        "seconds": seconds,
        "images_per_second": len(data) / seconds,
        "peak_mib_above_before": (peak_memory() - before) / MIB,
    }


def read(config: DataConfig, barrier: multiprocessing.synchronize.Barrier) -> dict[str, float]:
    """Open the cache, read all of it, and say what the mapping takes while the other processes hold it too."""
    start = time.perf_counter()
    data = load_cached_images(config)
    seconds = time.perf_counter() - start
    data.images.max()
    barrier.wait()
    row = {"open_seconds": seconds, **mapping("images.bin", data.images.nbytes)}
    barrier.wait()
    return row


def mapping(file_name: str, size: int) -> dict[str, float]:
    """MiB of the mapping of a file of this name and size in this process's memory, from /proc/self/smaps.

    Rss counts its pages that are in memory; Pss divides each by the number of processes that share it.
    """
    for header, body in re.findall(r"^(\w+-\w+ .*)\n((?:\w+:.*\n)+)", Path("/proc/self/smaps").read_text(), re.M):
        start, stop = (int(end, 16) for end in header.split()[0].split("-"))
        if header.endswith(f"/{file_name}") and 0 <= stop - start - size < os.sysconf("SC_PAGE_SIZE"):
            kib = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", body, re.M))
            return {"rss_mib": int(kib["Rss"]) / 1024, "pss_mib": int(kib["Pss"]) / 1024}
    raise LookupError(f"{file_name} is not mapped")


def in_processes(folder: Path, config: DataConfig) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Build in one new process and read in four, with caches of their own, so that nothing is there beforehand."""
    os.environ |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}  # read by each new process
    built = in_new_process(build, config)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, context) as pool:
        barrier: Any = manager.Barrier(PROCESSES)
        return built, [job.result() for job in [pool.submit(read, config, barrier) for _ in range(PROCESSES)]]
