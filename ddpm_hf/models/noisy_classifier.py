"""A classifier of noisy images, for classifier guidance (Dhariwal and Nichol 2021): a UNet without the way up.

Parameters have the names that they have in UNet2DModel.
"""

from pkgutil import resolve_name
from typing import Any, get_type_hints

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ddpm_hf.models.embeddings import EmbeddingMLP, SinusoidalEmbedding
from ddpm_hf.models.fused import ActivatedGroupNorm
from ddpm_hf.models.unet_2d_blocks import BlockConfig, UNetMidBlock2D, attend
from ddpm_hf.models.unet_2d_config import DOWN_BLOCKS
from ddpm_hf.settings import check_types


class AttentionPool(nn.Module):
    """What the mean of all pixels attends to, among them and itself: (B, C, H, W) to (B, K).

    Args:
        channels: C.
        pixels: H W of all images.
        head_channels: channels of a head.
        outputs: K.
    """

    def __init__(self, channels: int, pixels: int, head_channels: int, outputs: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, pixels + 1) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        seen = torch.cat([pixels.mean(dim=2, keepdim=True), pixels], dim=2) + self.positional_embedding
        parts = self.qkv(seen.transpose(1, 2)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out(attend(q[:, :, :1], k, v).flatten(1))  # type: ignore[no-any-return]


class NoisyClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """log p(y | x_t) up to a constant.

    Args:
        sample_size: height and width of the images.
        in_channels: channels of the images.
        num_classes: K.
        down_block_types: see `UNet2DModel`.
        block_out_channels: channels of each level.
        layers_per_block: residual blocks of each level.
        downsample_type: see `UNet2DModel`.
        attention_head_dim: channels of a head, also in the pooling.
        norm_num_groups: groups of every group norm.
        norm_eps: epsilon of every group norm.
        resnet_time_scale_shift: see `UNet2DModel`.
        time_proj_dim: sines and cosines of the time embedding, which is 4 times as wide.

    Raises:
        ValueError: for values of other types, or images that the levels do not halve.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 4,
        downsample_type: str = "resnet",
        attention_head_dim: int = 64,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "scale_shift",
        time_proj_dim: int = 128,
    ) -> None:
        super().__init__()
        check_types(self.config, get_type_hints(NoisyClassifier.__init__))
        channels, factor = list(block_out_channels), 2 ** (len(block_out_channels) - 1)
        if sample_size % factor:
            raise ValueError(
                f"sample_size={sample_size} is not a multiple of {factor}, as there are {len(channels)} levels."
            )
        is_scale_shift = resnet_time_scale_shift == "scale_shift"
        config = BlockConfig(
            4 * time_proj_dim, norm_num_groups, norm_eps, "silu", 0.0, is_scale_shift, attention_head_dim
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1)
        self.time_proj = SinusoidalEmbedding(time_proj_dim, is_cosine_first=True, frequency_shift=0)
        self.time_embedding = EmbeddingMLP(time_proj_dim, 4 * time_proj_dim)
        self.activation = nn.SiLU()
        self.down_blocks = nn.ModuleList()
        for i, block_type in enumerate(down_block_types):
            sampling = downsample_type if i < len(channels) - 1 else None
            block = resolve_name(DOWN_BLOCKS[block_type])
            self.down_blocks.append(block(channels[max(i - 1, 0)], channels[i], layers_per_block, config, 1, sampling))
        self.mid_block = UNetMidBlock2D(channels[-1], config, 1.0, norm_num_groups, add_attention=True)
        self.conv_norm_out = ActivatedGroupNorm(norm_num_groups, channels[-1], norm_eps, nn.SiLU())
        self.pool = AttentionPool(channels[-1], (sample_size // factor) ** 2, attention_head_dim, num_classes)

    def forward(self, sample: Tensor, timestep: Tensor | int) -> Tensor:
        """Run the network.

        Args:
            sample: x_t, (B, in_channels, sample_size, sample_size).
            timestep: t, one number for all images or (B,).

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: for images of another shape.
        """
        expected = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if sample.shape[1:] != expected:
            raise ValueError(
                f"the classifier was given images of {tuple(sample.shape[1:])} and knows those of {expected}."
            )
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.activation(self.time_embedding(self.time_proj(t).to(sample)))
        x = self.conv_in(sample)
        for block in self.down_blocks:
            x, _ = block(x, time)
        return self.pool(self.conv_norm_out(self.mid_block(x, time)))  # type: ignore[no-any-return]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers', but only from safetensors.

        Raises:
            OSError: there is no such classifier, or none in safetensors.
        """
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})
