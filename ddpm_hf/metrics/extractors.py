"""Feature networks by name: where their weights come from, whether a file holds them, and how images go in."""

import hashlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from ddpm_hf.files import sha256_of
from ddpm_hf.launch import decided_by_main
from ddpm_hf.metrics.features import WEIGHTS, DigitsFeatures
from ddpm_hf.metrics.table import check_weights_of
from ddpm_hf.metrics.weights import Source, fetched

SOURCES = {
    # The network of the FID's first code, of 2015-12-05, in PyTorch's format.
    "inception": Source(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    # The network of improved precision and recall's code, a TorchScript file.
    "vgg16": Source(
        "vgg16.pt", "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt", None
    ),
}
DINOV2 = "facebook/dinov2-large"
"""The network of Stein et al. (2023), ViT-L/14, on the Hub."""

NAMES = ("digits", "pixels", *SOURCES, "dinov2")

RGB = (1, 3)
"""The numbers of channels of images for a network of colour photographs: grey is repeated."""


class Extractor(nn.Module):
    """Images, uint8 ``(N, C, H, W)``, to features, float32 ``(N, D)``; frozen.

    ``channels`` are the numbers of channels that it takes; None where it takes any, or says so itself. One that
    ``takes_any_values`` is given float32 in [-1, 1] in place of uint8. `ddpm_hf.metrics.intake` sees to both.

    Args:
        name: Name that the user gave.
        sha256: Hash of the file of weights.
    """

    has_classes = False
    channels: tuple[int, ...] | None = None
    takes_any_values = False

    def __init__(self, name: str, sha256: str) -> None:
        super().__init__()
        self.name = name
        self.sha256 = sha256

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch."""
        raise NotImplementedError

    def check_classes(self) -> None:
        """Refuse a network that knows no classes.

        Raises:
            ValueError: it knows none.
        """
        if not self.has_classes:
            raise ValueError(
                f"the extractor {self.name} knows no classes, which the Inception score and the accuracy need; use "
                "digits or inception"
            )

    @torch.no_grad()
    def class_scores(self, features: Tensor) -> Tensor:
        """Scores ``(N, K)`` of the classes, before the softmax, of features ``(N, D)`` on any device.

        Raises:
            ValueError: the network knows no classes.
        """
        self.check_classes()
        device = next(self.parameters()).device
        return self.logits(features.to(device)).to(features.device)

    def logits(self, features: Tensor) -> Tensor:
        """As `class_scores`, on the network's device."""
        raise NotImplementedError


def load_extractor(name: str, weights: Path | None = None, accelerator: Accelerator | None = None) -> Extractor:
    """A feature network. Weights of Inception and VGG16 that are not there come from their publishers.

    Args:
        name: One of `NAMES`; the path of a TorchScript file that turns uint8 images into features; or the folder or
            Hub id of a vision transformer of the transformers library.
        weights: The file of a named one (the folder for dinov2), in place of its usual one.
        accelerator: Its processes, which must all ask; the main one fetches. None for this process alone.

    Raises:
        ValueError: the name is unknown, a package or the weights cannot be had (with the command that gets them), or
            the file is not what it should be.
    """
    check_weights_of(name, weights)
    if name == "digits":
        return _Digits(name, sha256_of(WEIGHTS))
    if name == "pixels":
        return _Pixels(name, hashlib.sha256(f"{_Pixels.__doc__}".encode()).hexdigest())
    if name in SOURCES:
        path = weights or _usual_weights(name, accelerator)
        sha256 = _checked(name, path, SOURCES[name], is_usual=weights is None)
        return _Inception(name, sha256, path) if name == "inception" else _VGG16(name, sha256, path)
    if name == "dinov2" or Path(name).is_dir() or (name.count("/") == 1 and not Path(name).exists()):
        folder = _transformer_folder(str(weights or (DINOV2 if name == "dinov2" else name)))
        return _Transformer(name, sha256_of(folder / "model.safetensors"), folder)
    if Path(name).is_file():
        return _Scripted(name, sha256_of(Path(name)), Path(name))
    raise ValueError(
        f"the extractor {name!r} is not one of {', '.join(NAMES)}, a TorchScript file, or the folder or Hub id of a "
        "vision transformer"
    )


def _usual_weights(name: str, accelerator: Accelerator | None) -> Path:
    if name == "inception":
        _inception_class()  # before its weights are fetched in vain
    if accelerator is not None:
        decided_by_main(accelerator, lambda: fetched(name, SOURCES[name]))
    return fetched(name, SOURCES[name])  # which is there, but on another machine than the main process


def _checked(name: str, path: Path, source: Source, is_usual: bool) -> str:
    if not path.is_file():
        raise ValueError(
            f"the weights of the extractor {name} are not at {path}; get them with 'curl --create-dirs -Lo {path} "
            f"{source.url}', or give the path of a file"
        )
    found, expected = sha256_of(path), source.expected if is_usual else source.sha256
    if expected not in (None, found):
        remedy = f"remove {path}, and it is fetched anew" if is_usual else f"get them from {source.url}"
        raise ValueError(
            f"{path} has the SHA-256 {found}, and the weights of the extractor {name} have {expected}; {remedy}"
        )
    return found


def _inception_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError("the extractor inception needs a package; run 'pip install ddpm-hf[inception]'") from error
    return FeatureExtractorInceptionV3


def _transformer_folder(name: str) -> Path:
    """A local folder as it is, or the files of a Hub id."""
    if not Path(name).is_dir():
        try:
            name = snapshot_download(name, allow_patterns=["config.json", "model.safetensors"])
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the extractor {name} cannot be had from the Hub: {reason}; get it on a machine with a network by "
                f"'hf download {name} config.json model.safetensors --local-dir FOLDER', and give FOLDER to "
                "--extractor_weights"
            ) from error
    for file in ("config.json", "model.safetensors"):
        if not (Path(name) / file).is_file():
            raise ValueError(
                f"{name} has no {file}; a folder of a vision transformer has config.json and model.safetensors"
            )
    return Path(name)


def _rgb(images: Tensor) -> Tensor:
    """Grey images as RGB ones, which these networks were trained on."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class _Digits(Extractor):
    has_classes = True
    channels = (1,)

    def __init__(self, name: str, sha256: str) -> None:
        super().__init__(name, sha256)
        self.network = DigitsFeatures.load()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features

    def logits(self, features: Tensor) -> Tensor:
        return self.network.logits(features)


class _Pixels(Extractor):
    """The values themselves, in means over areas: at most 1,024 numbers an image, in [-1, 1]."""

    takes_any_values = True

    def forward(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        factor = min(1, math.sqrt(MOST_PIXELS / (channels * height * width)))
        rows = max(1, min(int(height * factor), MOST_PIXELS // channels))
        columns = max(1, min(int(width * factor), MOST_PIXELS // (channels * rows)))
        return F.adaptive_avg_pool2d(images, (rows, columns)).flatten(1)


MOST_PIXELS = 1024
"""So that FID's covariance stays small, and some thousand images are enough for it."""


class _Inception(Extractor):
    """With TensorFlow 1's bilinear resize, which does not smooth, as in the FID's first code."""

    has_classes = True
    channels = RGB

    def __init__(self, name: str, sha256: str, path: Path) -> None:
        super().__init__(name, sha256)
        network_class = _inception_class()
        # torch-fidelity unpickles whatever it is given; so it is given tensors that have been read safely.
        tensors = io.BytesIO()
        try:
            torch.save(torch.load(path, map_location="cpu", weights_only=True), tensors)
            tensors.seek(0)
            self.network = network_class("inception-v3-compat", ["2048"], tensors)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} does not hold the weights of the extractor inception: {reason}") from error

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(_rgb(images))[0]
        return features

    def logits(self, features: Tensor) -> Tensor:
        # Without the bias, as in the Inception score's first code.
        weight: Tensor = self.network.fc.weight
        return features @ weight.T


class _Scripted(Extractor):
    """Any TorchScript file: uint8 images in, features out."""

    def __init__(self, name: str, sha256: str, path: Path) -> None:
        super().__init__(name, sha256)
        try:
            self.network: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} is not a TorchScript file: {reason}") from error
        self.network.eval()
        for parameter in self.network.parameters():  # a script module has no requires_grad_
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features.float()


class _VGG16(_Scripted):
    """NVIDIA's file resizes by itself; its features are the 4096 numbers before the classes."""

    channels = RGB

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(_rgb(images), return_features=True)
        return features.float()


class _Transformer(Extractor):
    """The class token of a vision transformer, of images resized and normalised as Stein et al. (2023) do."""

    channels = RGB

    def __init__(self, name: str, sha256: str, folder: Path) -> None:
        super().__init__(name, sha256)
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise ValueError(f"the extractor {name} needs a package; run 'pip install ddpm-hf[dino]'") from error
        try:
            network = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{folder} does not hold a network of the transformers library: {reason}") from error
        self.network = network.float().eval().requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Pillow's bicubic filter, rounded to whole grey levels.
        large = F.interpolate(_rgb(images).float(), size=(224, 224), mode="bicubic", antialias=True)
        large = large.round().clamp(0, 255) / 255
        tokens: Tensor = self.network(pixel_values=(large - self.mean) / self.std).last_hidden_state
        return tokens[:, 0]
