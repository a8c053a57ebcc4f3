"""Features of a set of images, computed once on all processes and kept; and the (mu, sigma) files of other programs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_hf.metrics.extractors import Extractor
from ddpm_hf.metrics.fid import mean_and_covariance


def fingerprint_of(images: Tensor) -> str:
    """SHA-256 of the shape and bytes of images, uint8 ``(N, C, H, W)``."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def features_of(
    images: Tensor,
    fingerprint: str,
    extractor: Extractor,
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    cache_dir: Path | None = None,
    show_progress: bool = False,
) -> Tensor:
    """Features of images, float32 ``(N, D)`` on the CPU, the same on every process: each computes its share, once.

    They are kept under the hash of the images and of the extractor's weights. Batches are cut from the whole, so any
    number of processes computes the same ones.

    Args:
        images: uint8 ``(N, C, H, W)``.
        fingerprint: Changes with the images.
        extractor: On the device of the accelerator.
        accelerator: Its processes share the work.
        batch_size: Images computed at once.
        cache_dir: Where features are kept; ``ddpm_hf/features`` of HF_HOME when None.
        show_progress: A bar on the main process.

    Raises:
        ValueError: the extractor takes other images.
    """
    key = hashlib.sha256(f"{fingerprint} {extractor.sha256} {batch_size}".encode()).hexdigest()
    path = (cache_dir or Path(HF_HOME) / "ddpm_hf" / "features") / f"{key}.safetensors"
    kept = path.exists()
    accelerator.wait_for_everyone()  # all have looked before one writes
    if kept:
        return load_file(path)["features"]
    found: Tensor | None = None
    starts = range(0, len(images), batch_size)
    shown = tqdm(starts, "features", unit="batch", disable=not show_progress, leave=False)
    for number, start in enumerate(shown):
        if number % accelerator.num_processes != accelerator.process_index and found is not None:
            continue
        with torch.no_grad():
            try:
                part = extractor(images[start : start + batch_size].to(accelerator.device)).float()
            except RuntimeError as error:  # of a network that was not made for such images
                reason = str(error).strip().splitlines()[-1]
                shape = tuple(images.shape[1:])
                raise ValueError(f"the extractor {extractor.name} does not take images of {shape}: {reason}") from error
        if found is None:
            found = torch.zeros(len(images), part.shape[1], device=accelerator.device)
        if number % accelerator.num_processes == accelerator.process_index:
            found[start : start + batch_size] = part
    assert found is not None
    features: Tensor = accelerator.reduce(found, reduction="sum").cpu()
    if not features.isfinite().all():
        raise ValueError(f"the extractor {extractor.name} gave features that are not finite")
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"features": features}, partial)
        partial.replace(path)
    accelerator.wait_for_everyone()
    return features


@dataclass(frozen=True)
class Statistics:
    """The Gaussian of a reference set, as pytorch-fid, ADM and EDM publish it.

    Args:
        mean: float64 ``(D,)``.
        covariance: float64 ``(D, D)``.
        extractor: SHA-256 of the weights of the network; None where the file does not say.
        image_shape: ``(C, H, W)`` of the images; None where the file does not say.
    """

    mean: Tensor
    covariance: Tensor
    extractor: str | None = None
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, features: Tensor, extractor: Extractor, image_shape: tuple[int, ...]) -> "Statistics":
        """Of features ``(N, D)``."""
        return cls(*mean_and_covariance(features), extractor.sha256, image_shape)

    @classmethod
    def load(cls, path: Path) -> "Statistics | None":
        """From an ``.npz`` with ``mu`` and ``sigma``; None for a file without them.

        Raises:
            ValueError: the file cannot be read, or its arrays do not fit together.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                if "mu" not in file or "sigma" not in file:
                    return None
                mean, covariance = (torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma"))
                extractor = str(file["extractor_sha256"]) if "extractor_sha256" in file else None
                shape = tuple(file["image_shape"].tolist()) if "image_shape" in file else None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an .npz of arrays: {error}") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"{path} holds mu of {tuple(mean.shape)} and sigma of {tuple(covariance.shape)}")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"{path} holds numbers that are not finite")
        return cls(mean, covariance, extractor, shape)

    def save(self, path: Path) -> None:
        """Write what pytorch-fid reads, and for `load` what the numbers are of."""
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                mu=self.mean.numpy(),
                sigma=self.covariance.numpy(),
                extractor_sha256=np.array(self.extractor or ""),
                image_shape=np.array(self.image_shape or ()),
            )
        partial.replace(path)

    def check(self, path: Path, extractor: Extractor, image_shape: tuple[int, ...], num_features: int) -> None:
        """Refuse to compare with features of another kind.

        Raises:
            ValueError: naming both.
        """
        if self.extractor and self.extractor != extractor.sha256:
            raise ValueError(
                f"{path} is of the extractor with the SHA-256 {self.extractor[:12]}..., and {extractor.name} has "
                f"{extractor.sha256[:12]}...; use the same --extractor"
            )
        if self.image_shape and self.image_shape != image_shape:
            raise ValueError(f"{path} is of images of {self.image_shape}, and the samples are {image_shape}")
        if len(self.mean) != num_features:
            raise ValueError(f"{path} has {len(self.mean)} features an image, and {extractor.name} {num_features}")
