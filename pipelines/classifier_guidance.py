"""Classifier guidance (Dhariwal & Nichol 2021): a classifier of noisy images draws samples to a class.

    from diffusers import DiffusionPipeline
    from ddpm_hf.models.noisy_classifier import NoisyClassifier

    pipe = DiffusionPipeline.from_pretrained(
        "adm-64", custom_pipeline="pipelines/classifier_guidance.py", trust_remote_code=True
    )
    classifier = NoisyClassifier.from_pretrained("classifier-64")
    images = pipe([207, 207, 360], classifier, classifier_scale=1.0, num_inference_steps=250).images

The score of x_t gets s times the gradient of log p(class | x_t) added, so the noise that the network predicts gets

    - sqrt(1 - alpha_bar_t) s grad log p(class | x_t)

(their algorithm 2), whatever the scheduler. The network may know the classes too, or not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ImagePipelineOutput
from torch import Tensor

import ddpm_hf


class ClassifierGuidancePipeline(ddpm_hf.DDPMCustomPipeline):
    """One image for each class label."""

    def __call__(
        self,
        class_labels: Sequence[int],
        classifier: Callable[[Tensor, Tensor], Tensor],
        classifier_scale: float = 1.0,
        **options: Any,
    ) -> ImagePipelineOutput:
        """Draw the images.

        Args:
            class_labels: the classes, one image each.
            classifier: logits of the classes (B, K) for x_t (B, C, H, W) and t (B,), differentiable; its layers are
                moved to where the network is.
            classifier_scale: s; 0 is no guidance, and more than 1 sharpens the classes.
            options: other arguments of `DDPMCustomPipeline`.

        Raises:
            ValueError: for a network that does not predict the noise, classes that the classifier lacks, guidance of
                another kind as well, and what `DDPMCustomPipeline` refuses.
        """
        if options.get("guidance_scale", 1) != 1:
            raise ValueError("give either a classifier or a guidance_scale for guidance without one, and not both.")
        if self.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"the network's prediction_type is {self.scheduler.config.prediction_type!r}, and classifier guidance "
                "changes a predicted noise (epsilon)."
            )
        labels = torch.tensor(list(class_labels))
        if isinstance(classifier, torch.nn.Module):
            classifier.to(self._execution_device, self.unet.dtype)

        def guide(unet: Any, inputs: tuple[Tensor, ...], output: Any) -> Any:
            x, t = inputs[0], torch.as_tensor(inputs[1], device=inputs[0].device).expand(len(inputs[0]))
            with torch.enable_grad():
                seen = x.detach().requires_grad_()
                log_p = F.log_softmax(classifier(seen, t).float(), dim=1)
                if labels.min() < 0 or labels.max() >= log_p.shape[1]:
                    raise ValueError(
                        f"class_labels={labels.tolist()} are not all of the classes 0 .. {log_p.shape[1] - 1}."
                    )
                chosen = log_p.gather(1, labels.to(x.device)[:, None])
                gradient = torch.autograd.grad(chosen.sum(), seen)[0]
            noise_level = (1 - self.scheduler.alphas_cumprod.to(x.device)[t.long()]).sqrt().to(x)[:, None, None, None]
            noise, *variance = output.sample.split(x.shape[1], dim=1)
            noise = noise - noise_level * classifier_scale * gradient
            return type(output)(sample=torch.cat([noise, *variance], dim=1))

        options = {"batch_size": len(labels), **options}
        if self.unet.config.num_class_embeds is not None:
            options["class_labels"] = labels
        hook = self.unet.register_forward_hook(guide)
        try:
            return super().__call__(**options)
        finally:
            hook.remove()
