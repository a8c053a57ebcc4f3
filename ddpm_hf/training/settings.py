"""The settings of a training run, as dataclasses: checked when they are made, and written back as a recipe."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.diffusion.checks import check_objective, check_process, check_weighting
from ddpm_hf.diffusion.choices import LOSS_WEIGHTINGS, LOSSES, TIMESTEP_SAMPLERS
from ddpm_hf.models.network_sizes import FOLLOWING, followed, follows
from ddpm_hf.models.unet_2d_config import check_config
from ddpm_hf.sampling.samplers import check_sampler
from ddpm_hf.settings import check, check_seed, named, plain, renamed, settings_group
from ddpm_hf.training.choices import LR_SCHEDULES, OPTIMIZERS, TRACKERS
from ddpm_hf.training.evaluation_settings import EvaluationConfig
from ddpm_hf.training.lengths import SNAPSHOTS, check_length

if TYPE_CHECKING:
    Loss: TypeAlias = str
    LossWeighting: TypeAlias = str
    LRSchedule: TypeAlias = str
    Optimizer: TypeAlias = str
    TimestepSampling: TypeAlias = str
    TrackerName: TypeAlias = str
else:  # the names of the tables, so that a new row is a new choice on the command line
    Loss, LossWeighting = Literal[tuple(LOSSES)], Literal[tuple(LOSS_WEIGHTINGS)]
    LRSchedule, Optimizer = Literal[tuple(LR_SCHEDULES)], Literal[tuple(OPTIMIZERS)]
    TimestepSampling, TrackerName = Literal[tuple(TIMESTEP_SAMPLERS)], Literal[tuple(TRACKERS)]


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation; the defaults are those of Ho et al. (2020) for CIFAR-10.

    Args:
        steps: Optimizer steps.
        batch_size: Images per optimizer step, over all processes and accumulation steps together.
        gradient_accumulation_steps: Forward and backward passes per optimizer step, to save memory.
        optimizer: adam; adamw, with decoupled weight decay; or muon, which orthogonalises the momentum of matrices.
        learning_rate: Learning rate after the warm-up.
        betas: Decay rates of the optimizer's first and second moments.
        weight_decay: Weight decay of the optimizer.
        lr_schedule: Learning rate after the warm-up: constant, or falling to zero at the last step along a half cosine
            (cosine) or a line (linear).
        warmup_steps: Steps of linear warm-up of the learning rate.
        max_grad_norm: Gradients of a larger norm are scaled down to it; .inf switches this off.
        max_skipped_steps: Consecutive steps that may be skipped because a loss or gradient is not finite; more stop the
            run.
        ema_decay: Decay of the average of the weights; step n uses min(decay, (1 + n) / (10 + n)). If a list is given,
            sampling uses the first average, and the others are saved beside it.
        ema_sigma_rels: Relative lengths of averages with the profile of a power function (Karras et al., 2024), such as
            [0.05, 0.1], from which ddpm-hf-ema builds averages of other lengths afterwards; an empty list keeps none.
        ema_snapshot_every: Steps between two snapshots of the averages of ema_sigma_rels, all of which are kept in the
            folder averages; null takes a thirty-second of training.steps.
        loss: simple (squared error), kl (the variational bound in bits/dim), or hybrid (simple, plus the variational
            bound for a learned variance).
        vlb_weight: Weight of the variational bound in hybrid.
        loss_weighting: Weights of the timesteps in the squared error: none (all equal), min_snr (Hang et al., 2023) or
            p2 (Choi et al., 2022).
        min_snr_gamma: Gamma of min_snr.
        p2_gamma: Gamma of p2.
        timestep_sampling: How training timesteps are drawn: uniform; stratified (spread evenly over the batch); or
            importance (in proportion to recent losses, with weights that keep the expected loss the same).
        label_dropout: Probability with which an image is trained without its class, for classifier-free guidance; the
            last of model.num_class_embeds then stands for "no class".
        log_every: Steps between two lines of metrics.jsonl, and of the log where stderr is not a terminal.
        trackers: Experiment trackers that receive metrics and sample grids, besides metrics.jsonl; each must be
            installed.
        checkpoint_every: Steps between two checkpoints; null keeps only the last step's.
        checkpoints_total_limit: Number of checkpoints to keep; the oldest is removed once a newer one is complete.
        sample_every: Steps between two grids of samples, always from the same seeds; null draws none.
        compile: Compile the network with torch.compile.
        channels_last: Store images and weights in the order (batch, height, width, channel).
        gradient_checkpointing: Compute the activations inside each block again in the backward pass, to save memory.
        tf32: Let float32 products on NVIDIA GPUs be rounded to 10 bits of mantissa, which is faster.
        deterministic: Take only algorithms of CUDA that give the same bits in every run; slower, and not needed on the
            CPU, whose bits are the same anyway.
    """

    steps: int = 800_000
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    optimizer: Optimizer = "adam"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    lr_schedule: LRSchedule = "constant"
    warmup_steps: int = 5000
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 20
    ema_decay: float | list[float] = 0.9999
    ema_sigma_rels: list[float] = field(default_factory=list)
    ema_snapshot_every: int | None = None
    loss: Loss = "simple"
    vlb_weight: float = 0.001
    loss_weighting: LossWeighting = "none"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    timestep_sampling: TimestepSampling = "uniform"
    label_dropout: float = 0.0
    log_every: int = 50
    trackers: list[TrackerName] = field(default_factory=list)
    checkpoint_every: int | None = 5000
    checkpoints_total_limit: int = 3
    sample_every: int | None = 5000
    compile: bool = False
    channels_last: bool = False
    gradient_checkpointing: bool = False
    tf32: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoints_total_limit"):
            check(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        for name in ("checkpoint_every", "sample_every", "ema_snapshot_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"training.{name}", value, "at least 1, or null")
        for name in ("learning_rate", "max_grad_norm", "min_snr_gamma", "p2_gamma", "vlb_weight"):
            check(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "above 0")
        for name in ("learning_rate", "weight_decay", "p2_gamma", "vlb_weight"):
            check(getattr(self, name) < math.inf, f"training.{name}", getattr(self, name), "a finite number")
        for name in ("warmup_steps", "weight_decay", "max_skipped_steps"):
            check(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "at least 0")
        check(0 <= self.label_dropout < 1, "training.label_dropout", self.label_dropout, "at least 0 and below 1")
        decays = self.ema_decays
        check(len(decays) > 0, "training.ema_decay", self.ema_decay, "a number or several")
        check(len(set(decays)) == len(decays), "training.ema_decay", self.ema_decay, "different numbers")
        for decay in decays:
            check(0 <= decay < 1, "training.ema_decay", decay, "at least 0 and below 1")
        lengths = self.ema_sigma_rels
        check(len(set(lengths)) == len(lengths), "training.ema_sigma_rels", lengths, "different numbers")
        for length in lengths:
            check_length("training.ema_sigma_rels", length)
        for beta in self.betas:
            check(0 <= beta < 1, "training.betas", self.betas, "two numbers, each at least 0 and below 1")

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays, however they were given; the first is the one that sampling uses."""
        return tuple(self.ema_decay) if isinstance(self.ema_decay, list) else (self.ema_decay,)

    @property
    def snapshot_every(self) -> int | None:
        """Steps between two snapshots of the averages of `ema_sigma_rels`; None where there are no such averages."""
        return (self.ema_snapshot_every or math.ceil(self.steps / SNAPSHOTS)) if self.ema_sigma_rels else None


@dataclass(frozen=True, kw_only=True)
class Config:
    """All the settings of a run.

    The Hub's token is not among them, because settings are written to files that may be pushed.

    Args:
        output_dir: Folder of the run; the same folder resumes it.
        seed: Everything random in the run follows from it.
        threads: CPU threads of each process; null divides the usable cores among the processes of this machine.
        quiet: Do not tell how far the run is: no bar in a terminal, and no lines where there is none; the scores are
            still printed.
        resume: auto resumes from the newest complete checkpoint in output_dir, if there is one; never starts a new run
            and replaces what is there; a path resumes from that checkpoint; hub:OWNER/NAME[@REVISION] resumes from the
            checkpoint that a run with hub_strategy checkpoints has pushed, or from a newer one in output_dir.
        init_from: Start a new run from the weights of a model: the folder of a pipeline, or its Hub id, with @REVISION
            if wanted. Settings of model and diffusion that are not given are then those of that model.
        init_partial: Let layers of init_from differ from this network's: those that do not fit start anew.
        dry_run: Take a few steps, save, draw and score a tiny sample, print what the full run would cost, and delete
            everything again.
        push_to_hub: Push the model to hub_model_id.
        hub_model_id: OWNER/NAME of the model on the Hub; it is created if it does not exist.
        hub_private_repo: Make the repository private when it is created.
        hub_license: License of the model, for its card.
        hub_strategy: end pushes at the end of the run; every_save also pushes the model of each checkpoint; checkpoints
            also pushes the newest checkpoint itself, to a branch of that name, from which another machine can resume.
        data: The images.
        model: All the keyword arguments of UNet2DModel; with null, size, channels, levels and widths follow the images.
        diffusion: All the keyword arguments of DDPMScheduler.
        training: Optimisation.
        evaluation: Images and scores.
    """

    output_dir: Path = Path("runs/digits")
    seed: int = 0
    threads: int | None = None
    quiet: bool = False
    resume: str = "auto"
    init_from: str | None = None
    init_partial: bool = False
    dry_run: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"
    hub_strategy: Literal["end", "every_save", "checkpoints"] = "end"
    data: DataConfig
    model: dict[str, Any] = field(
        metadata={"constructor": "ddpm_hf.models.unet_2d:UNet2DModel", "following": FOLLOWING}
    )
    diffusion: dict[str, Any] = field(metadata={"constructor": "ddpm_hf.schedulers.ddpm:DDPMScheduler"})
    training: TrainingConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError(
                f"push_to_hub is {self.push_to_hub} and hub_model_id is {self.hub_model_id}; to push give both, "
                "--push_to_hub --hub_model_id OWNER/NAME"
            )
        expected = "the folder or the Hub id of a pipeline, or null"
        check(self.init_from is None or bool(self.init_from.strip()), "init_from", repr(self.init_from), expected)
        if self.is_open:
            return
        with renamed({key: f"model.{key}" for key in self.model}):
            check_config(self.network)
        with renamed({key: f"diffusion.{key}" for key in self.diffusion}):
            check_process(self.diffusion)
        self._check_embeddings()
        self._check_objective()
        self._check_network()
        self._check_evaluation()

    @property
    def is_open(self) -> bool:
        """Whether settings of the network or the process are still those of `init_from`, which is not read yet.

        Until then they are not among `model` and `diffusion`, or are null there.
        """
        missing = defaults_of("model").keys() - self.model or defaults_of("diffusion").keys() - self.diffusion
        return self.init_from is not None and (bool(missing) or follows(self.model))

    def _check_objective(self) -> None:
        training = self.training
        names = {"variance_type": "diffusion.variance_type", "loss": "training.loss"}
        with renamed({**names, "weighting": "training.loss_weighting"}):
            check_objective(training.loss, self.diffusion["variance_type"], training.loss_weighting)
            check_weighting(training.loss_weighting, self.diffusion["prediction_type"])

    def _check_embeddings(self) -> None:
        """Check what the network learns of times and classes."""
        steps, kind = self.diffusion["num_train_timesteps"], self.model["time_embedding_type"]
        known = self.model["num_train_timesteps"]
        expected = "positional or learned: fourier takes the logarithm of the timestep, and training visits timestep 0"
        check(kind != "fourier", "model.time_embedding_type", kind, expected)
        if kind == "learned":
            expected = f"at least diffusion.num_train_timesteps, {steps}, as model.time_embedding_type is learned"
            check(known >= steps, "model.num_train_timesteps", known, expected)
        embedding, classes = self.model["class_embed_type"], self.model["num_class_embeds"]
        expected = "null or timestep: the images come with classes, and identity takes a vector for each"
        check(embedding != "identity", "model.class_embed_type", embedding, expected)
        expected = "the number of classes, as model.class_embed_type is timestep"
        check(embedding is None or classes is not None, "model.num_class_embeds", classes, expected)

    def _check_network(self) -> None:
        """Check the settings of the network that do not depend on the images."""
        images, outputs = self.model["in_channels"], self.model["out_channels"]
        if None not in (images, outputs):
            wanted = 2 * images if self._is_variance_learned else images
            expected = f"{wanted} for model.in_channels {images} and diffusion.variance_type "
            check(outputs == wanted, "model.out_channels", outputs, expected + self.diffusion["variance_type"])
        size, levels = self.model["sample_size"], len(self.network["block_out_channels"])
        factor = self.model["patch_size"] * 2 ** (levels - 1)
        sides = size if isinstance(size, list | tuple) else (size or 0,)
        patches = "" if self.model["patch_size"] == 1 else f" and model.patch_size is {self.model['patch_size']}"
        expected = f"a multiple of {factor}, as model.block_out_channels has {levels} levels{patches}"
        origin = "data.resolution" if size == self.data.resolution else "model.sample_size"
        check(all(side % factor == 0 for side in sides), origin, size, expected)
        dropout, classes = self.training.label_dropout, self.model["num_class_embeds"]
        expected = "0, or model.num_class_embeds must be given"
        check(dropout == 0 or classes is not None, "training.label_dropout", dropout, expected)

    def _check_evaluation(self) -> None:
        settings, steps = self.evaluation, self.diffusion["num_train_timesteps"]
        check_seed("seed", self.seed)
        own, asked = self.diffusion["timestep_spacing"], settings.timestep_spacing
        expected = f"leading or {asked}, as evaluation.timestep_spacing is {asked}; or make that null"
        check(asked is None or own in ("leading", asked), "diffusion.timestep_spacing", own, expected)
        prediction_type = self.diffusion["prediction_type"]
        with named("evaluation.sampler: "):
            check_sampler(settings.sampler, self.timestep_spacing, prediction_type=prediction_type)
        has_guide = settings.guidance_scale == 1 or self.training.label_dropout > 0
        expected = "1, or training.label_dropout above 0"
        check(has_guide, "evaluation.guidance_scale", settings.guidance_scale, expected)
        taken = settings.num_inference_steps
        expected = f"at most diffusion.num_train_timesteps, {steps}"
        check(taken <= steps, "evaluation.num_inference_steps", taken, expected)
        if settings.extractor is not None and self.data.streaming:
            raise ValueError(
                "evaluation.extractor needs all the training images at hand, and data.streaming keeps none; make it "
                "null, and score with ddpm-hf-evaluate afterwards"
            )

    @property
    def _is_variance_learned(self) -> bool:
        return str(self.diffusion["variance_type"]).startswith("learned")

    @property
    def network(self) -> dict[str, Any]:
        """The settings of the network; what follows images that are not loaded yet is that of likely ones."""
        if not follows(self.model):
            return self.model
        height, width = self.data.size or (32 * self.model["patch_size"],) * 2
        return self._followed((self.data.channels or self.model["in_channels"] or 3, height, width))

    def following(self, shape: tuple[int, ...]) -> "Config":
        """These settings with the network that the images want, where they leave it to them.

        Args:
            shape: ``(C, H, W)`` of the images.

        Raises:
            ValueError: there is none for this size.
        """
        return replace(self, model=self._followed(shape)) if follows(self.model) else self

    def _followed(self, shape: tuple[int, ...]) -> dict[str, Any]:
        try:
            with renamed({key: f"model.{key}" for key in self.model}):
                return followed(self.model, shape, self._is_variance_learned)
        except ValueError as error:
            raise ValueError(f"{error} (data.resolution resizes images)") from None

    @property
    def timestep_spacing(self) -> str:
        """How samplers spread their timesteps, in the evaluation and as the saved scheduler has it."""
        return self.evaluation.timestep_spacing or str(self.diffusion["timestep_spacing"])

    def to_dict(self) -> dict[str, Any]:
        """The resolved settings in the types of JSON and YAML."""
        settings: dict[str, Any] = plain(asdict(self))
        return settings

    def to_yaml(self) -> str:
        """The resolved settings as a recipe: ``--config`` with it repeats this run."""
        recipe: str = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
        return recipe


@cache
def defaults_of(group: str) -> dict[str, Any]:
    """The defaults of the settings in ``model`` or in ``diffusion``."""
    [kind] = [settings_group(one) for one in fields(Config) if one.name == group]
    assert kind is not None
    return {one.name: one.default for one in fields(kind)}
