"""Classifier-free guidance (Ho & Salimans 2022) at several scales side by side, from the same noise.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "me/ddpm-digits-conditional", custom_pipeline="pipelines/class_guidance.py", trust_remote_code=True
    )
    images = pipe(class_labels=range(10), guidance_scales=[1.0, 2.0, 4.0]).images  # 3 x 10: a row for each scale

The model must have been trained with labels dropped at random, its last class standing for "no class". A larger scale
gives more typical images of the class, and less different ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput

import ddpm_hf


class ClassGuidancePipeline(ddpm_hf.DDPMCustomPipeline):
    """One image for each class and guidance scale."""

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scales: Sequence[float] = (1.0, 2.0, 4.0),
        seed: int = 0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        **options: Any,
    ) -> ImagePipelineOutput:
        """Draw the images.

        Args:
            class_labels: the classes, one image each.
            guidance_scales: w of unconditional + w (conditional - unconditional); 1 is no guidance.
            seed: the image of the i-th class is made from seed + i at every scale.
            num_inference_steps: S.
            output_type: see `DDPMCustomPipeline`.
            options: other arguments of `DDPMCustomPipeline`.

        Returns:
            `images`: a list with the images of each scale.
        """
        labels = list(class_labels)
        run = super().__call__
        rows = [
            run(
                seeds=range(seed, seed + len(labels)),
                class_labels=labels,
                guidance_scale=scale,
                num_inference_steps=num_inference_steps,
                output_type=output_type,
                **options,
            ).images
            for scale in guidance_scales
        ]
        return ImagePipelineOutput(images=rows)
