"""Everything that a training run needs, built and checked before anything is written."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from ddpm_hf.data.augmentation import NUM_LABELS, Augmentation
from ddpm_hf.data.batches import Batches, ClassLabels
from ddpm_hf.data.sources import ImageSource, load_image_data
from ddpm_hf.data.streaming import StreamedImages
from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.timestep_sampling import timestep_sampler
from ddpm_hf.hub.public_files import public
from ddpm_hf.hub.push import prepare_once
from ddpm_hf.hub.repository import Repository
from ddpm_hf.launch import decided_by_main, differences_from_launcher, environment
from ddpm_hf.models.network_sizes import FOLLOWING
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.progress import has_terminal
from ddpm_hf.randomness import seed_from
from ddpm_hf.sampling.denoising import network_of, no_class_of
from ddpm_hf.sampling.samplers import check_start, make_scheduler
from ddpm_hf.schedulers.ddim import DDIMScheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.training.base_model import BaseModel, inherited, load_base_model, settled, start_from
from ddpm_hf.training.bits import reserve_workspace
from ddpm_hf.training.changes import changes, refused_changes
from ddpm_hf.training.checkpoint_files import record_of, step_of
from ddpm_hf.training.checkpoints import Checkpoints, TrainingState, restore
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.evaluation import SampleEvaluation
from ddpm_hf.training.folder import refuse_to_replace
from ddpm_hf.training.held_out import HeldOutLoss, held_out_images
from ddpm_hf.training.idle import idle_on, idle_settings, without_effect
from ddpm_hf.training.needs import check_batch, check_needs
from ddpm_hf.training.optimization import (
    check_fit,
    check_optimizer,
    make_optimizer,
    objective_of,
    prepare_network,
    shard_by_blocks,
)
from ddpm_hf.training.publish import download_checkpoint
from ddpm_hf.training.settings import Config

# With another of these a run agrees with the unbroken one to rounding, and not to the bit.
CHANGES_ROUNDING = ("device", "processes", "threads_per_process", "mixed_precision", "distributed_type", "torch")


@dataclass(frozen=True)
class Setup:
    """The parts of a run, which fit together.

    Args:
        config: All settings.
        accelerator: The processes.
        data: The training images.
        scheduler: The diffusion process to train.
        saved_scheduler: The scheduler of the pipelines that are saved.
        model: The network as accelerate has wrapped it.
        state: What the steps change, the network itself included; a checkpoint is in it already.
        batches: The batch of each step.
        evaluation: Draws images and scores them.
        held_out_loss: The loss on images that are not trained on, if it is asked for.
        checkpoints: Checkpoints of this run.
        repository: Repository that the run is pushed to, if any.
        history: What each resume has changed.
        environment: Machine, versions, processes.
        notes: Sentences for the user.
        chosen: Settings of the network that follow the images.
        resumed: The checkpoint that the run goes on from.
        record: What that checkpoint recorded.
    """

    config: Config
    accelerator: Accelerator
    data: ImageSource
    scheduler: DDPMScheduler
    saved_scheduler: DDPMScheduler | DDIMScheduler
    model: Any
    state: TrainingState
    batches: Batches
    evaluation: SampleEvaluation
    held_out_loss: HeldOutLoss | None
    checkpoints: Checkpoints
    repository: Repository | None
    history: list[dict[str, Any]]
    environment: dict[str, Any]
    notes: list[str]
    chosen: list[str]
    resumed: Path | None
    record: dict[str, Any]

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser of the network in training, without clipping or thresholding."""
        return _denoiser(self.config, self.data, self.scheduler, self.model)


def build(config: Config, accelerator: Accelerator, data: ImageSource | None = None) -> Setup:
    """Build the parts of a run and check that they fit together; nothing is written but caches.

    Args:
        config: All settings.
        accelerator: The processes.
        data: A source of images to use in place of the data set that the settings name.

    Raises:
        ValueError: settings, data, launcher or checkpoint do not go together.
    """
    training, show_progress = config.training, shows_progress(config, accelerator)
    if training.deterministic:
        reserve_workspace()
    if not (show_progress and has_terminal()):
        datasets.disable_progress_bars()
    place, notes = environment(accelerator), differences_from_launcher(accelerator)
    folder = config.output_dir / "checkpoints"
    present = Checkpoints(folder, training.checkpoints_total_limit, accelerator)
    resumed, broken = _checkpoint(config.resume, present, accelerator)
    notes += broken
    asked = config
    # A checkpoint has all that came of the base model.
    base = load_base_model(config.init_from, accelerator) if config.init_from and not resumed else None
    chosen = [] if config.is_open else [name for name in FOLLOWING if config.model[name] is None]
    is_known = not config.is_open and not chosen
    if is_known:  # before the images are decoded, which may take long
        check_needs(config, accelerator)
    data = data or load_image_data(config.data, show_progress)
    config = _settled(config, base, resumed, data)
    if not is_known:
        check_needs(config, accelerator)
    notes += [note for name, note in idle_settings(config).items() if name not in inherited(asked)]
    notes += idle_on(accelerator.device.type, config)
    check_batch(data.shape, training, accelerator)
    torch.manual_seed(seed_from("weights", config.seed))
    unet = UNet2DModel(**config.model)
    if base is not None:
        start = start_from(base, unet, asked, config)
        place["base_model"] = start.record
        notes += start.notes
        del base  # its weights
    if config.data.augment_probability > 0:
        unet.add_augment_embedding(NUM_LABELS)
    scheduler = DDPMScheduler(**config.diffusion)
    check_fit(data, unet, scheduler, training)
    check_optimizer(training, accelerator)
    timesteps = timestep_sampler(training.timestep_sampling, len(scheduler), training.batch_size)
    has_classes = unet.config.num_class_embeds is not None
    batches = Batches(
        data,
        training.batch_size,
        timesteps,
        config.seed,
        accelerator,
        augmentation=Augmentation.of(config.data),
        labels=ClassLabels(training.label_dropout, no_class_of(unet)) if has_classes else None,
    )
    evaluation = evaluation_of(config, data, accelerator, show_progress)
    checkpoints = Checkpoints(folder, training.checkpoints_total_limit, accelerator, data.format)
    if config.resume != "never" and (resumed is None or resumed.parent.resolve() != checkpoints.folder.resolve()):
        decided_by_main(accelerator, lambda: refuse_to_replace(config.output_dir, config.to_dict()))
    record = _accepted(resumed, config, data) if resumed else {}
    if record.get("environment", {}).get("base_model"):
        place["base_model"] = record["environment"]["base_model"]

    prepare_network(unet, training)
    shard_by_blocks(accelerator, unet)
    model, optimizer = accelerator.prepare(unet, make_optimizer(unet.parameters(), training))
    ema = EMA(unet.parameters(), training.ema_decays, training.ema_sigma_rels)
    state = TrainingState(unet, optimizer, ema, timesteps, accelerator.scaler)
    history: list[dict[str, Any]] = []
    if resumed:
        restore(resumed, state)
        history = [*record["history"], _resumption(record, config, place)]
        notes += _differences_in_rounding(history[-1]["environment"])
    repository = None
    if config.push_to_hub and not config.dry_run:
        repository = Repository(config.hub_model_id or "", private=config.hub_private_repo)
        prepare_once(repository, accelerator)
    return Setup(
        config=config,
        accelerator=accelerator,
        data=data,
        scheduler=scheduler,
        saved_scheduler=_saved_scheduler(config, scheduler),
        model=model,
        state=state,
        batches=batches,
        evaluation=evaluation,
        held_out_loss=_held_out_loss(config, data, _denoiser(config, data, scheduler, model), accelerator),
        checkpoints=checkpoints,
        repository=repository,
        history=history,
        environment=place,
        notes=notes,
        chosen=chosen,
        resumed=resumed,
        record=record,
    )


def _settled(config: Config, base: BaseModel | None, resumed: Path | None, data: ImageSource) -> Config:
    """The settings, with those that wait for a base model or for the images."""
    if config.is_open:
        if base is not None:
            followed = base.settings(config, data.shape)
        else:
            assert resumed is not None
            followed = record_of(resumed)["config"]
        config = settled(config, followed)
    return config.following(data.shape)


def _denoiser(config: Config, data: ImageSource, scheduler: DDPMScheduler, model: Any) -> Denoiser:
    denoiser = scheduler.denoiser.without_restriction().of(network_of(model))
    return denoiser if config.training.loss == "simple" else replace(denoiser, half_bin=data.format.half_bin)


def _held_out_loss(
    config: Config, data: ImageSource, denoiser: Denoiser, accelerator: Accelerator
) -> HeldOutLoss | None:
    """The loss on the first images of the held-out split, if the settings ask for it."""
    if config.evaluation.loss_every is None:
        return None
    held_out = held_out_images(config, data)
    count = min(len(held_out), config.evaluation.num_images)
    has_classes = config.model["num_class_embeds"] is not None
    labels = held_out.labels[:count] if has_classes and held_out.labels is not None else None
    batch_size = min(config.evaluation.batch_size, config.training.batch_size)
    held_out = replace(held_out, images=held_out.images[:count], labels=labels)
    return HeldOutLoss(denoiser, objective_of(config.training), held_out, config.seed, accelerator, batch_size)


def shows_progress(config: Config, accelerator: Accelerator) -> bool:
    """Whether this process tells how far it is."""
    return bool(accelerator.is_main_process) and not config.quiet


def evaluation_of(config: Config, data: ImageSource, accelerator: Accelerator, show_progress: bool) -> SampleEvaluation:
    """What draws and scores the images of a run, now or afterwards.

    Args:
        config: All settings.
        data: The training images.
        accelerator: Its processes share the work.
        show_progress: Tell how far it is.

    Raises:
        ValueError: the settings ask for images or scores that there cannot be.
    """
    sampler = evaluation_sampler(config, DDPMScheduler(**config.diffusion), accelerator)
    return SampleEvaluation(config, data, sampler, accelerator, show_progress)


def evaluation_sampler(config: Config, scheduler: DDPMScheduler, accelerator: Accelerator) -> Any:
    """The sampler of the settings, with its timesteps set.

    Raises:
        ValueError: it would start at images that are nearly clean.
    """
    evaluation = config.evaluation
    sampler = make_scheduler(scheduler.config, evaluation.sampler, config.timestep_spacing)
    sampler.set_timesteps(evaluation.num_inference_steps, accelerator.device)
    check_start(sampler)
    return sampler


def _saved_scheduler(config: Config, scheduler: DDPMScheduler) -> DDPMScheduler | DDIMScheduler:
    """diffusers' DDIM fails on a network that learned its variance; its DDPM draws with it."""
    ddim = DDIMScheduler.from_config(scheduler.config, timestep_spacing=config.timestep_spacing)
    is_learned = scheduler.config.variance_type.startswith("learned")
    saved: DDPMScheduler | DDIMScheduler = DDPMScheduler.from_config(ddim.config) if is_learned else ddim
    return saved


def _checkpoint(resume: str, checkpoints: Checkpoints, accelerator: Accelerator) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, the same on all processes, and notes about others."""
    if not resume.startswith("hub:"):
        return checkpoints.find(resume)
    # The branch may move, or the network fail, between the looks of two processes.
    downloaded = decided_by_main(accelerator, lambda: download_checkpoint(resume))
    if not downloaded.exists():  # on another machine than the main process; its cache is named by commits
        downloaded = download_checkpoint(f"{resume.partition('@')[0]}@{downloaded.parent.name}")
    here, notes = checkpoints.newest()
    return (here if here and step_of(here) >= step_of(downloaded) else downloaded), notes


def _accepted(checkpoint: Path, config: Config, data: ImageSource) -> dict[str, Any]:
    """The record of a checkpoint, if this run may resume from it."""
    record = record_of(checkpoint)
    refused = refused_changes(record["config"], config.to_dict())
    refused = {name: change for name, change in refused.items() if name not in without_effect(config)}
    base, base_now = (public(change) for change in refused.get("init_from", (None, config.init_from)))
    if base == base_now:  # a checkpoint that came from the Hub holds no path of the machine that pushed it
        refused.pop("init_from", None)
    if refused:
        diff = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise ValueError(
            f"{checkpoint} was trained with other settings ({diff}); go on with those, or start another run with "
            "another --output_dir (or in this one, replacing what is there, with --resume never)"
        )
    if record["data"] != data.fingerprint and not (isinstance(data, StreamedImages) and data.was(record["data"])):
        raise ValueError(
            f"{checkpoint} was trained on other images than {data.name!r} holds now; give it the same ones, "
            "or start another run with another --output_dir"
        )
    return record


def _resumption(record: dict[str, Any], config: Config, place: dict[str, Any]) -> dict[str, Any]:
    """The differences from the run that wrote the checkpoint."""
    return {
        "step": record["step"],
        "settings": changes(record["config"], config.to_dict()),
        "environment": changes(record["environment"], place),
    }


def _differences_in_rounding(environment_changes: dict[str, Any]) -> list[str]:
    rounding = {key: change for key, change in environment_changes.items() if key in CHANGES_ROUNDING}
    if not rounding:
        return []
    diff = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in rounding.items())
    return [f"not as before: {diff}; so it agrees with an unbroken run to rounding, not to the bit"]
