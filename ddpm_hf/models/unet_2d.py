"""UNet2DModel: the network of Ho et al. 2020, under diffusers' config and parameter names."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, get_type_hints

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ddpm_hf.files import check_hashes, write_hashes
from ddpm_hf.models.embeddings import EmbeddingMLP, FourierEmbedding, SinusoidalEmbedding
from ddpm_hf.models.fused import ActivatedGroupNorm
from ddpm_hf.models.unet_2d_blocks import BlockConfig, UNetMidBlock2D
from ddpm_hf.models.unet_2d_config import (
    ACTIVATIONS,
    DOWN_BLOCKS,
    OURS_ONLY,
    UP_BLOCKS,
    check_config,
    heads_per_level,
    is_diffusers_network,
    without_old_prefix,
)
from ddpm_hf.settings import check_types

logger = logging.getLogger(__name__)

TRAINING_ONLY = "augment_embedding."
"""Beginning of the names of parameters that no saved model has: without augmentation they add nothing."""


@dataclass
class UNet2DOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """The network's output, (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Predicts noise, x_0 or v from a noisy image and its time step.

    Args:
        sample_size: height and width of the images, for samplers; a multiple of 2^(levels - 1).
        in_channels: channels of the images.
        out_channels: channels of the output; twice `in_channels` where the variance is learned.
        center_input_sample: map input in [0, 1] to [-1, 1] first.
        time_embedding_type: `positional`, `fourier` or `learned`.
        time_embedding_dim: E; 4 block_out_channels[0] when None.
        freq_shift: shift of the positional embedding's frequencies; 1 in Ho et al.'s code.
        flip_sin_to_cos: put cosines before sines in the positional embedding.
        down_block_types: `DownBlock2D`, `AttnDownBlock2D` or `ResnetDownsampleBlock2D` for each level.
        mid_block_type: `UNetMidBlock2D` or None.
        up_block_types: `UpBlock2D`, `AttnUpBlock2D` or `ResnetUpsampleBlock2D` for each level, from the lowest
            resolution up.
        block_out_channels: channels of each level.
        layers_per_block: residual blocks of each level (the up side has one more).
        mid_block_scale_factor: divisor of the middle block's results.
        downsample_padding: 1, or 0 for padding below and to the right only, as in Ho et al.'s code.
        downsample_type: `conv`, or `resnet` for levels with attention.
        upsample_type: `conv`, or `resnet` for levels with attention.
        dropout: probability of dropout.
        act_fn: `silu` (or `swish`), `mish`, `gelu` or `relu`.
        attention_head_dim: channels of a head; None for one head, as in Ho et al. A list has one number per level, for
            as many heads on levels of different widths (improved-diffusion); plain diffusers then refuses the
            checkpoint, as it divides by the list.
        norm_num_groups: groups of every group norm.
        attn_norm_num_groups: groups of the middle attention's norm; None for `norm_num_groups`.
        norm_eps: epsilon of every group norm.
        resnet_time_scale_shift: `default` adds the time embedding; `scale_shift` scales and shifts by it (iDDPM).
        add_attention: False leaves the middle block's attention out.
        class_embed_type: None (an index into `num_class_embeds` vectors, if that is set), `timestep` or `identity`.
        num_class_embeds: number of classes.
        num_train_timesteps: T, for the `learned` time embedding.
        patch_size: side p of the squares of pixels that the network sees as one, p^2 times the channels on a p-th of
            the side (the `block_size` of ddpm-torch). diffusers has no such key: it is in the config where it is not 1,
            and plain diffusers then refuses the checkpoint, as its first and last weights have other shapes.
        time_proj_dim: sines and cosines of the time embedding; block_out_channels[0] when None. diffusers has no such
            key either, and refuses a checkpoint with it for the shape of the embedding's first weights.

    Raises:
        ValueError: for settings that are unknown or do not fit together, in one sentence.

    Examples:
        >>> unet = UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(32, 32, 32, 32))
        >>> unet(torch.randn(2, 1, 16, 16), timestep=500).sample.shape
        torch.Size([2, 1, 16, 16])
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: ClassVar = ["norm"]

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | tuple[int, ...] | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        patch_size: int = 1,
        time_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_types(self.config, get_type_hints(UNet2DModel.__init__))
        check_config(self.config)
        self.patch_size = patch_size
        self.is_diffusers_network = is_diffusers_network(self.config)
        heads = heads_per_level(self.config)
        kept = {key: value for key, value in self.config.items() if key not in OURS_ONLY or value != OURS_ONLY[key]}
        self._internal_dict = FrozenDict(kept)
        channels = list(block_out_channels)
        levels = len(channels)
        time_channels = time_embedding_dim or channels[0] * 4
        config = BlockConfig(
            time_channels=time_channels,
            groups=norm_num_groups,
            eps=norm_eps,
            activation=act_fn.lower(),
            dropout=dropout,
            is_scale_shift=resnet_time_scale_shift == "scale_shift",
            head_channels=None,
        )
        configs = [replace(config, head_channels=head_channels) for head_channels in heads]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels[0], kernel_size=3, padding=1)

        waves = time_proj_dim or channels[0]
        if time_embedding_type == "fourier":
            self.time_proj: nn.Module = FourierEmbedding(waves, scale=16)
            waves = 2 * waves
        elif time_embedding_type == "positional":
            self.time_proj = SinusoidalEmbedding(waves, flip_sin_to_cos, freq_shift)
        else:
            self.time_proj = nn.Embedding(num_train_timesteps or 0, waves)
        self.time_embedding = EmbeddingMLP(waves, time_channels)

        self.class_embedding: nn.Module | None = None
        if class_embed_type is None and num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, time_channels)
        elif class_embed_type == "timestep":
            self.class_embedding = EmbeddingMLP(waves, time_channels)
        elif class_embed_type == "identity":
            self.class_embedding = nn.Identity()

        self.augment_embedding: nn.Linear | None = None

        self.activation = resolve_name(ACTIVATIONS[config.activation])()
        self.down_blocks = nn.ModuleList()
        skips = [channels[0]]
        for i, block_type in enumerate(down_block_types):
            sampling = downsample_type if i < levels - 1 else None
            block_in = channels[max(i - 1, 0)]
            down_block = resolve_name(DOWN_BLOCKS[without_old_prefix(block_type)])
            self.down_blocks.append(
                down_block(block_in, channels[i], layers_per_block, configs[i], downsample_padding, sampling)
            )
            skips += [channels[i]] * (layers_per_block + (sampling is not None))

        self.up_blocks = nn.ModuleList()
        self.mid_block: nn.Module | None = None
        if mid_block_type is not None:
            attention_groups = attn_norm_num_groups or (None if config.is_scale_shift else norm_num_groups)
            self.mid_block = UNetMidBlock2D(
                channels[-1], configs[-1], mid_block_scale_factor, attention_groups, add_attention
            )

        for i, block_type in enumerate(up_block_types):
            level = levels - 1 - i
            sampling = upsample_type if level > 0 else None
            block_in = channels[min(level + 1, levels - 1)]
            taken = [skips.pop() for _ in range(layers_per_block + 1)]
            up_block = resolve_name(UP_BLOCKS[without_old_prefix(block_type)])
            self.up_blocks.append(up_block(block_in, channels[level], taken, configs[level], sampling))
        blocks = [*self.down_blocks, *self.up_blocks, *([self.mid_block] if self.mid_block else [])]
        self._no_split_modules = sorted({type(block).__name__ for block in blocks})  # what accelerate's FSDP shards

        self.conv_norm_out = ActivatedGroupNorm(norm_num_groups, channels[0], norm_eps, nn.SiLU())
        self.conv_out = nn.Conv2d(channels[0], out_channels * patch_size**2, kernel_size=3, padding=1)

    def add_augment_embedding(self, num_labels: int) -> None:
        """Let the network in training be told how an image was augmented (Karras et al. 2022, appendix F.2).

        The embedding of the timestep gets a linear map of the labels added, without bias, so that labels of zero, or
        none, change nothing. It begins as large as the embedding of classes: from zero it is learned so slowly that a
        short run draws augmented images. It is in no config and in no saved model.
        """
        weight = self.conv_in.weight
        channels = self.time_embedding.linear_2.out_features
        self.augment_embedding = nn.Linear(num_labels, channels, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.normal_(self.augment_embedding.weight)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        augment_labels: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Run the network.

        Args:
            sample: x_t, (B, in_channels, H, W); H and W multiples of patch_size 2^(levels - 1).
            timestep: t, one number for all images or (B,).
            class_labels: (B,) indices; (B,) numbers for class_embed_type `timestep`; (B, E) for `identity`.
            return_dict: False for the plain tuple (output,).
            augment_labels: (B, num_labels) after `add_augment_embedding`, how the images were augmented in training.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: for an input that does not fit the network, in one sentence.
        """
        self._check_input(sample, class_labels)
        self._check_augment_labels(sample, augment_labels)
        if self.config.center_input_sample:
            sample = 2 * sample - 1

        t = torch.as_tensor(timestep).reshape(-1)
        if len(t) not in (1, len(sample)):
            raise ValueError(f"timestep has {len(t)} entries for {len(sample)} images; give one, or one per image.")
        self._check_times(t)
        t = t.to(sample.device)
        embedding = self.time_embedding(self.time_proj(t).to(self.dtype))
        if self.class_embedding is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(self.dtype)
            embedding = embedding + self.class_embedding(class_labels).to(self.dtype)
        if self.augment_embedding is not None and augment_labels is not None:
            embedding = embedding + self.augment_embedding(augment_labels.to(self.dtype))
        time = self.activation(embedding.expand(len(sample), -1))

        x = F.pixel_unshuffle(sample, self.patch_size) if self.patch_size > 1 else sample
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, more_skips = block(x, time)
            skips += more_skips
        if self.mid_block is not None:
            x = self.mid_block(x, time)
        for block in self.up_blocks:
            x = block(x, [skips.pop() for _ in range(self.config.layers_per_block + 1)], time)
        x = self.conv_out(self.conv_norm_out(x))
        if self.patch_size > 1:
            x = F.pixel_shuffle(x, self.patch_size)

        if self.config.time_embedding_type == "fourier":
            x = x / t.view(-1, 1, 1, 1)
        return UNet2DOutput(x) if return_dict else (x,)

    def _check_times(self, t: Tensor) -> None:
        """See that the embedding has these times, as far as one knows without waiting for a device."""
        kind, total = self.config.time_embedding_type, self.config.num_train_timesteps
        if kind == "learned" and t.is_floating_point():
            raise ValueError(
                "time_embedding_type='learned' knows whole timesteps only, and the UNet was given others; use a "
                "sampler that visits whole ones, such as ddim."
            )
        if kind == "positional" or t.device.type != "cpu":
            return
        first, last = t.min().item(), t.max().item()
        if kind == "fourier" and first <= 0:
            raise ValueError(
                f"the UNet was given the timestep {first}, and time_embedding_type='fourier' takes its logarithm and "
                "divides by it; use timesteps above 0, or another time_embedding_type."
            )
        if kind == "learned" and not 0 <= first <= last < total:
            wrong = first if first < 0 else last
            raise ValueError(
                f"the UNet was given the timestep {wrong}, and time_embedding_type='learned' knows 0 .. {total - 1}; "
                "make its num_train_timesteps that of the scheduler."
            )

    def _check_augment_labels(self, sample: Tensor, augment_labels: Tensor | None) -> None:
        if augment_labels is None:
            return
        if self.augment_embedding is None:
            raise ValueError("augment_labels were given to a UNet without add_augment_embedding; leave them out.")
        expected = (len(sample), self.augment_embedding.in_features)
        if augment_labels.shape != expected:
            raise ValueError(f"augment_labels are of shape {tuple(augment_labels.shape)} and must be of {expected}.")

    def _check_input(self, sample: Tensor, class_labels: Tensor | None) -> None:
        levels = len(self.config.block_out_channels)
        factor = self.patch_size * 2 ** (levels - 1)
        patches = f" and patch_size {self.patch_size}" if self.patch_size > 1 else ""
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"the UNet was given a sample of shape {tuple(sample.shape)}; expected (batch, "
                f"{self.config.in_channels}, height, width), as its in_channels is {self.config.in_channels}."
            )
        if sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(
                f"the UNet was given images of {sample.shape[2]}x{sample.shape[3]}; with its {levels} levels"
                f"{patches} height and width must be multiples of {factor}: resize or pad the images, or use fewer "
                "levels."
            )
        if self.class_embedding is None and class_labels is not None:
            raise ValueError(
                "class_labels were given to a UNet without classes; set num_class_embeds, or leave them out."
            )
        if self.class_embedding is not None and class_labels is None:
            raise ValueError("this UNet is class-conditional; give class_labels, one per image.")
        if class_labels is not None and class_labels.shape[:1] not in ((), (1,), sample.shape[:1]):
            raise ValueError(f"{len(class_labels)} class_labels came with {len(sample)} images; give one per image.")

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """As diffusers', but always in safetensors: pickled weights are not written, as they are not read.

        Their hashes are kept beside them, in hashes.json.
        """
        if not safe_serialization:
            logger.warning("safe_serialization=False is ignored: UNet2DModel is saved in safetensors only.")
        super().save_pretrained(
            save_directory, is_main_process, save_function, True, variant, max_shard_size=max_shard_size, **kwargs
        )
        if is_main_process and Path(save_directory).is_dir():
            write_hashes(Path(save_directory), "*.safetensors")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers', but only from safetensors, and every parameter must be in the file.

        (diffusers only logs a missing one, or with ignore_mismatched_sizes one of another shape, leaves it without
        memory, and on a CPU computes with whatever is there.)

        Raises:
            ValueError: if the checkpoint lacks parameters of the network, or has others, or some of another shape; or
                a file is not the one whose hash `save_pretrained` has kept.
            OSError: if there is no such checkpoint, or none in safetensors.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                "use_safetensors=False asks for pickled weights, which can run code; only safetensors are read."
            )
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if not folder.is_dir() or any(folder.glob("*.bin")):
            # The default would fall back on pickled weights. A folder without any keeps it, and with it the words of
            # diffusers' error for a variant that is not there, which its tests compare.
            kwargs["use_safetensors"] = True
        check_hashes(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        found = []
        for kind in ("missing", "unexpected", "mismatched"):
            # A mismatched key comes with its two shapes.
            names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"])
            if names:
                found.append(f"{len(names)} {kind} keys ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        if found:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold this UNet: {'; '.join(found)}. Its weights and its "
                "config.json are of different models."
            )
        for weight in model.parameters():
            # Mapped from the file they may begin at any address, and on a CPU the last bit of a sum depends on it.
            if weight.device.type == "cpu":
                weight.data = weight.data.clone()
        return (model, info) if wants_info else model
