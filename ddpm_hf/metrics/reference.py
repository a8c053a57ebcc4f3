"""Features of a set of images, computed once on all processes and kept; and the (mu, sigma) files of other programs."""

import hashlib
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_hf.files import SEAL, remove_temporaries, written_whole
from ddpm_hf.launch import compute_in_shares, exact_float32
from ddpm_hf.metrics.extractors import Extractor
from ddpm_hf.metrics.frechet import check_gaussian, mean_and_covariance
from ddpm_hf.metrics.intake import AS_THEY_ARE, Intake

EIGHT_BITS = "8 bits with all channels"
DAY = 24 * 60 * 60
logger = logging.getLogger(__name__)


def fingerprint_of(images: Tensor) -> str:
    """SHA-256 of the shape and bytes of images ``(N, C, H, W)``."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureExtraction:
    """Turns sets of images into features, float32 ``(N, D)`` on the CPU, the same on every process.

    Batches are cut from the whole and shared out, so any number of processes computes the same ones.

    Args:
        extractor: On the device of the accelerator.
        accelerator: Its processes share the work.
        batch_size: Images computed at once.
        cache_dir: Where `kept` keeps them; ``ddpm_hf/features`` of HF_HOME when None.
        show_progress: Tell how far it is.
        intake: What the extractor sees of the images.
    """

    extractor: Extractor
    accelerator: Accelerator
    batch_size: int = 64
    cache_dir: Path | None = None
    show_progress: bool = False
    intake: Intake = AS_THEY_ARE

    def kept(self, images: Tensor, fingerprint: str) -> Tensor:
        """Features of images that will be used again: from the file of an earlier call, or computed and saved.

        Args:
            images: ``(N, C, H, W)`` of the type of the intake's format.
            fingerprint: Changes with the images. The file is named by it, by what the extractor sees of them, the hash
                of its weights and the kind of device.

        Raises:
            ValueError: as `of`.
        """
        device = self.accelerator.device.type
        rounding = "" if device == "cpu" else f" {device}"
        named = f"{fingerprint} {self.extractor.sha256} {self.batch_size}{self.intake.key}{rounding}"
        key = hashlib.sha256(named.encode()).hexdigest()
        path = (self.cache_dir or Path(HF_HOME) / "ddpm_hf" / "features") / f"{key}.safetensors"
        # Another run may write the file at any time, so one process looks, for all of them.
        found = _read_features(path) if self.accelerator.is_main_process else None
        (shape,) = broadcast_object_list([None if found is None else found.shape])
        if shape is not None:
            features: Tensor = broadcast((torch.empty(shape) if found is None else found).to(self.accelerator.device))
            return features.cpu()
        features = self.of(images)
        if self.accelerator.is_main_process:
            _keep_features(path, features)
        return features

    def of(self, images: Tensor) -> Tensor:
        """Features of images ``(N, C, H, W)`` of the type of the intake's format.

        Raises:
            ValueError: the extractor takes other images, or gives numbers that are not finite.
        """
        features = compute_in_shares(
            lambda batch: self._of_batch(images[batch.start : batch.stop]),
            len(images),
            self.batch_size,
            self.accelerator,
            progress="features" if self.show_progress else None,
        )
        if not features.isfinite().all():
            raise ValueError(f"the extractor {self.extractor.name} gave features that are not finite")
        return features

    @torch.no_grad()
    def _of_batch(self, images: Tensor) -> Tensor:
        try:
            with exact_float32():
                features: Tensor = self.extractor(self.intake(images.to(self.accelerator.device), self.extractor))
        except RuntimeError as error:  # of a network that was not made for such images
            reason, shape = str(error).strip().splitlines()[-1], tuple(images.shape[1:])
            raise ValueError(
                f"the extractor {self.extractor.name} does not take images of {shape}: {reason}"
            ) from error
        return features


@dataclass(frozen=True)
class Statistics:
    """The Gaussian of a reference set, as pytorch-fid, ADM and EDM publish it.

    Args:
        mean: float64 ``(D,)``.
        covariance: float64 ``(D, D)``.
        extractor: SHA-256 of the weights of the network; None where the file does not say.
        image_shape: ``(C, H, W)`` of the images; None where the file does not say.
        intake: The key of what the network saw of them; empty for 8-bit images as they are.
    """

    mean: Tensor
    covariance: Tensor
    extractor: str | None = None
    image_shape: tuple[int, ...] | None = None
    intake: str = ""

    @classmethod
    def of(cls, features: Tensor, features_of: FeatureExtraction, image_shape: tuple[int, ...]) -> "Statistics":
        """Statistics of features ``(N, D)`` that were found so."""
        return cls(*mean_and_covariance(features), features_of.extractor.sha256, image_shape, features_of.intake.key)

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
                intake = str(file["intake"]) if "intake" in file else ""
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as an .npz of arrays: {error}") from error
        check_gaussian(mean, covariance, str(path))
        return cls(mean, covariance, extractor, shape, intake)

    def save(self, path: Path) -> None:
        """Write what pytorch-fid reads, and for `load` what the numbers are of."""
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                mu=self.mean.numpy(),
                sigma=self.covariance.numpy(),
                extractor_sha256=np.array(self.extractor or ""),
                image_shape=np.array(self.image_shape or ()),
                intake=np.array(self.intake),
            )

    def check(
        self, path: Path, features_of: FeatureExtraction, image_shape: tuple[int, ...], num_features: int
    ) -> None:
        """Refuse a comparison with features of another kind.

        Raises:
            ValueError: naming both.
        """
        extractor = features_of.extractor
        if self.extractor and self.extractor != extractor.sha256:
            raise ValueError(
                f"{path} is of the extractor with the SHA-256 {self.extractor[:12]}..., and {extractor.name} has "
                f"{extractor.sha256[:12]}...; use the same --extractor"
            )
        if self.image_shape and self.image_shape != image_shape:
            raise ValueError(f"{path} is of images of {self.image_shape}, and the samples are {image_shape}")
        if self.extractor and self.intake != features_of.intake.key:
            raise ValueError(
                f"{path} is of images that the features saw as {self.intake or EIGHT_BITS}, and they see the samples "
                f"as {features_of.intake.key or EIGHT_BITS}; use the same type, range and --extractor_channels"
            )
        if len(self.mean) != num_features:
            raise ValueError(f"{path} has {len(self.mean)} features an image, and {extractor.name} {num_features}")


def _read_features(path: Path) -> Tensor | None:
    """Those of an earlier call; None where there are none, or the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            features: Tensor = file.get_tensor("features")
            return features if (file.metadata() or {}).get(SEAL) == _hash_of_tensor(features) else None
    except (OSError, SafetensorError, TypeError):
        return None


def _keep_features(path: Path, features: Tensor) -> None:
    """Write them for a later call, which computes them again if this does not work."""
    try:
        remove_temporaries(path.parent, older_than=DAY)
        with written_whole(path, shared=True) as temporary:
            save_file({"features": features}, temporary, {SEAL: _hash_of_tensor(features)})
    except (OSError, SafetensorError) as error:
        logger.warning("the features could not be kept in %s: %s", path, error)


def _hash_of_tensor(tensor: Tensor) -> str:
    header = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    digest = xxhash.xxh3_128(header)
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
