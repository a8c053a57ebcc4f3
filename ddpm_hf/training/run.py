"""A training run: built and checked before anything is written, and what it does between two steps."""

import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ddpm_hf.data.batches import Batch, Batches
from ddpm_hf.data.sources import load_image_data
from ddpm_hf.diffusion.timestep_sampling import timestep_sampler
from ddpm_hf.hub.push import prepare_once
from ddpm_hf.hub.repository import Repository
from ddpm_hf.images import save_png
from ddpm_hf.launch import StopSignal, differences_from_launcher, environment
from ddpm_hf.manifest import write_json
from ddpm_hf.metrics.evaluation import HELD_OUT, SAMPLES, Results
from ddpm_hf.metrics.figures import save_curve
from ddpm_hf.metrics.table import SCORES
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.randomness import seed_from
from ddpm_hf.sampling.denoising import network_of
from ddpm_hf.sampling.samplers import check_start, make_scheduler
from ddpm_hf.schedulers.ddim import DDIMScheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.settings import flat
from ddpm_hf.training.checkpoints import (
    Checkpoints,
    SaveError,
    TrainingState,
    averages_of,
    record_of,
    replace_folder,
    restore,
    save_pipeline,
    step_of,
)
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.evaluation import SampleEvaluation
from ddpm_hf.training.log import MetricsLog, read_log
from ddpm_hf.training.optimization import check_fit, learning_rate, make_optimizer, objective_of, prepare_network
from ddpm_hf.training.publish import Publisher, download_checkpoint
from ddpm_hf.training.settings import Config, changes, refused_changes

# With another of these a run agrees with the unbroken one to rounding, and not to the bit.
CHANGES_ROUNDING = ("device", "processes", "threads_per_process", "mixed_precision", "distributed_type", "torch")


TIME_TO_STOP = 20
"""Seconds that a push may take when a run ends early: who sends a signal seldom waits for more than 30."""


class Stopped(Exception):
    """A signal came; the step is done and saved."""


class Run:
    """All the nouns of a run, and its folder.

    Args:
        config: Its settings.
        accelerator: Its processes.

    Raises:
        ValueError: settings, data, launcher or checkpoint do not go together. Nothing is written then.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.folder = config.output_dir
        self.show_progress = accelerator.is_main_process and not config.quiet and sys.stderr.isatty()
        if not self.show_progress:
            datasets.disable_progress_bars()
        self.environment = environment(accelerator)
        self.notes = differences_from_launcher(accelerator)
        self.seconds = {"training": 0.0, "saving": 0.0, "sampling": 0.0, "scoring": 0.0}
        self.history: list[dict[str, Any]] = []

        training = config.training
        self.data = load_image_data(config.data, self.show_progress)
        torch.manual_seed(seed_from("weights", config.seed))
        unet = UNet2DModel(**config.model)
        self.scheduler = DDPMScheduler(**config.diffusion)
        evaluation = config.evaluation
        self.sampler = make_scheduler(self.scheduler.config, evaluation.sampler, evaluation.timestep_spacing)
        self.sampler.set_timesteps(evaluation.num_inference_steps, accelerator.device)
        check_start(self.sampler)
        # diffusers' DDIM fails on a network that learned its variance; its DDPM draws with it.
        is_learned = self.scheduler.config.variance_type.startswith("learned")
        ddim = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing=evaluation.timestep_spacing)
        self.saved_scheduler = DDPMScheduler.from_config(ddim.config) if is_learned else ddim
        check_fit(self.data, unet, self.scheduler, training)
        self.objective = objective_of(training)
        timesteps = timestep_sampler(training.timestep_sampling, len(self.scheduler), training.batch_size)
        classes = unet.config.num_class_embeds
        self.batches = Batches(
            self.data,
            training.batch_size,
            timesteps,
            config.seed,
            config.data.random_flip,
            classes is not None,
            accelerator,
            training.label_dropout,
            no_class=(classes or 0) - 1,
        )
        self.evaluation = SampleEvaluation(config, self.data, self.sampler, accelerator, self.show_progress)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", training.checkpoints_total_limit, accelerator)
        self.resumed, notes = self._checkpoint()
        self.notes += notes
        self._record = self._accepted(self.resumed) if self.resumed else {}

        prepare_network(unet, training)
        self.model, optimizer = accelerator.prepare(unet, make_optimizer(unet.parameters(), training))
        self.denoiser = self.scheduler.denoiser.without_restriction().of(network_of(self.model))
        ema = EMA(unet.parameters(), training.ema_decays)
        self.state = TrainingState(unet, optimizer, ema, timesteps, accelerator.scaler)
        if self.resumed:
            restore(self.resumed, self.state)
        self.publisher: Publisher | None = None
        self._repository: Repository | None = None
        if config.push_to_hub and not config.dry_run:
            self._repository = Repository(config.hub_model_id or "", private=config.hub_private_repo)
            prepare_once(self._repository, accelerator)

    def _checkpoint(self) -> tuple[Path | None, list[str]]:
        """The one to go on from, and what there is to say of others."""
        resume = self.config.resume
        if not resume.startswith("hub:"):
            return self.checkpoints.find(resume)
        downloaded = download_checkpoint(resume)
        here, notes = self.checkpoints.find("auto")
        return (here if here and step_of(here) >= step_of(downloaded) else downloaded), notes

    def _accepted(self, checkpoint: Path) -> dict[str, Any]:
        """What a checkpoint recorded, if this run may go on from it."""
        record = record_of(checkpoint)
        refused = refused_changes(record["config"], self.config.to_dict())
        if refused:
            diff = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in refused.items())
            raise ValueError(
                f"{checkpoint} was trained with other settings ({diff}); go on with those, or start another run with "
                "another --output_dir (or in this one, replacing what is there, with --resume never)"
            )
        if record["data"] != self.data.fingerprint:
            raise ValueError(
                f"{checkpoint} was trained on other images than {self.data.name!r} holds now; give it the same ones, "
                "or start another run with another --output_dir"
            )
        free = changes(record["config"], self.config.to_dict())
        others = changes(record["environment"], self.environment)
        self.seconds |= record["seconds"]
        self.history = [*record["history"], {"step": record["step"], "settings": free, "environment": others}]
        rounding = {key: change for key, change in others.items() if key in CHANGES_ROUNDING}
        if rounding:
            diff = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in rounding.items())
            self.notes.append(f"not as before: {diff}; so it agrees with an unbroken run to rounding, not to the bit")
        return record

    def start(self) -> None:
        """Make the folder and say what will happen."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clear(everything=self.config.resume == "never")
            (self.folder / "config.yaml").write_text(self.config.to_yaml())
            write_json(self.folder / "environment.json", self.environment)
            log = self.folder / "metrics.jsonl"
            if self.resumed and not log.exists() and (self.resumed.parent / log.name).exists():
                shutil.copyfile(self.resumed.parent / log.name, log)
            if self._repository is not None:
                self.publisher = Publisher(
                    self.folder, self._repository, self.config.hub_strategy, self.config.hub_license
                )
            if not self.config.quiet:
                print(self._describe())
            for note in self.notes:
                print(f"Note: {note}.", file=sys.stderr)
        if self.config.training.trackers:
            settings = flat(self.config.to_dict())
            simple = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
            self.accelerator.init_trackers("ddpm_hf", config=simple)
        self.log = MetricsLog(
            self.folder / "metrics.jsonl",
            self.accelerator,
            self.config.training.batch_size,
            len(self.scheduler),
            after=self.state.step,
            pending=self._record.get("log"),
        )

    def steps(self) -> Iterator[tuple[int, list[Batch]]]:
        """The steps that are left, each with its micro-batches; logs, grids, scores and checkpoints come in between.

        Raises:
            Stopped: SIGTERM or SIGINT came, and the step in which it came is saved.
            FloatingPointError: too many steps in a row were skipped.
            SaveError: a checkpoint could not be written.
        """
        stop, total = StopSignal(self.accelerator), self.config.training.steps
        batches = self.batches.of_steps(self.state.step, total)
        bar = tqdm(batches, "training", total, initial=self.state.step, unit="step", disable=not self.show_progress)
        with stop.caught():
            since = time.perf_counter()
            for step, micro_batches in bar:
                yield step, micro_batches
                self.seconds["training"] += time.perf_counter() - since
                try:
                    self._after_step(stop.agreed(), bar)
                except (Stopped, FloatingPointError, SaveError) as end:
                    problem = self.publisher.close(TIME_TO_STOP) if self.publisher else None
                    end.args = (f"{end}; {problem}" if problem else str(end),)
                    self.accelerator.wait_for_everyone()  # a launcher ends the one that pushes with the first to end
                    raise
                since = time.perf_counter()

    def _after_step(self, stopping: bool, bar: Any) -> None:
        training, state = self.config.training, self.state
        last = state.step == training.steps
        if state.skipped_in_a_row > training.max_skipped_steps:
            first = state.step - state.skipped_in_a_row + 1
            kept, _ = self.checkpoints.find("auto")
            raise FloatingPointError(
                f"the gradient was not finite at steps {first} to {state.step}, and none of them was taken; try a "
                f"lower training.learning_rate (it is {learning_rate(state.step - 1, training):g} there) or a longer "
                f"training.warmup_steps; the last good checkpoint is {kept or 'none'}"
            )
        if last or state.step % training.log_every == 0:
            line = self.log.write(
                state.step,
                learning_rate=learning_rate(state.step - 1, training),
                ema_decay=state.ema.decay_now(training.ema_decays[0]),
                seconds_waited=self.batches.seconds_waited,
            )
            bar.set_postfix(loss=line["loss"] and f"{line['loss']:.4f}")
        if training.sample_every and state.step % training.sample_every == 0:
            self._draw_grid()
        if self.config.evaluation.every and state.step % self.config.evaluation.every == 0 and not last:
            self.evaluate()
        due = training.checkpoint_every and state.step % training.checkpoint_every == 0
        # While steps are skipped the weights may be ruined already, and the older checkpoints are the good ones.
        if last or stopping or (due and not state.skipped_in_a_row):
            self._save()
        if stopping:
            done = f"step {state.step} of {training.steps}"
            raise Stopped(f"stopped by a signal; {done} is saved, and the same command goes on from there")

    def _save(self) -> None:
        with self._timed("saving"):
            record = {
                "config": self.config.to_dict(),
                "environment": self.environment,
                "data": self.data.fingerprint,
                "log": self.log.state_dict(),
                "history": self.history,
                "seconds": self.seconds,
            }
            checkpoint = self.checkpoints.save(self.state, self.saved_scheduler, record)
        if self.publisher is not None:
            self.publisher.saved(checkpoint)

    def _draw_grid(self) -> None:
        with self._timed("sampling"), self.state.ema.averaged_weights():
            images = self.evaluation.draw(self.state.unet, self.config.evaluation.grid_images)
        grid, step = self.evaluation.grid(images), self.state.step
        if self.accelerator.is_main_process:
            save_png(grid, self.folder / "samples" / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image("samples", np.asarray(grid.convert("RGB")), step, dataformats="HWC")
            elif tracker.name == "wandb":
                tracker.log_images({"samples": [grid]}, step=step)

    def evaluate(self) -> tuple[Results, torch.Tensor]:
        """Draw the images of the averaged weights and score them; keep the best weights, if they are looked for."""
        with self._timed("sampling"), self.state.ema.averaged_weights():
            images = self.evaluation.draw(self.state.unet, self.config.evaluation.num_images)
        with self._timed("scoring"):
            results = self.evaluation.score(images)
        if self.config.evaluation.every:
            self._keep_best(results)
        return results, images

    def _keep_best(self, results: Results) -> None:
        score = SCORES[self.config.evaluation.best_by]
        values = {"step": self.state.step} | results.of(SAMPLES)
        self.log.write_line(values)
        if self.accelerator.is_main_process:
            lines = read_log(self.folder / "metrics.jsonl")
            rounds = {line["step"]: line[score.name] for line in lines if score.name in line}
            held_out = results.of(HELD_OUT).get(score.name)
            save_curve(self.folder / "samples" / f"{score.name}.png", rounds, score, held_out)
        earlier = (self.state.best or {}).get(score.name)
        if not score.is_better(values[score.name], than=earlier):
            return
        self.state.best = values
        averages = averages_of(self.state)
        if self.accelerator.is_main_process:
            best, partial = self.folder / "best", self.folder / ".best.partial"
            save_pipeline(partial, self.state.unet, averages, self.saved_scheduler)
            write_json(partial / "metrics.json", values)
            replace_folder(partial, best)

    def finish(self, results: Results, images: torch.Tensor) -> None:
        """Write the pipeline, the grid and the results into the run's folder."""
        averages = averages_of(self.state)
        if not self.accelerator.is_main_process:
            return
        save_pipeline(self.folder, self.state.unet, averages, self.saved_scheduler)
        save_png(self.evaluation.grid(images), self.folder / "samples" / "grid.png")
        content = {
            **results.to_dict(),
            **self.evaluation.provenance,
            "best": self.state.best,
            "first_image_seed": self.evaluation.first_seed,
            "seed": self.config.seed,
            "steps": self.state.step,
            "skipped_steps": self.state.skipped,
            "seconds": self.seconds,
            "environment": self.environment,
            "history": self.history,
        }
        write_json(self.folder / "metrics.json", content)
        if self.publisher is not None:
            self.publisher.finished()

    def report(self, results: Results) -> str:
        """The scores, and what to do with the model, for a person to read."""
        return (
            f"{self.evaluation.table(results)}\n\n"
            f"Everything is in {self.folder}: the pipeline, samples/grid.png, metrics.json. To draw from it:\n\n"
            f"    from ddpm_hf import DDPMCustomPipeline\n"
            f'    pipe = DDPMCustomPipeline.from_pretrained("{self.folder}")\n'
            f'    pipe(num_inference_steps=100).images[0].save("image.png")\n'
        )

    def _describe(self) -> str:
        channels, height, width = self.data.shape
        parameters = sum(parameter.numel() for parameter in self.state.unet.parameters())
        training, place = self.config.training, self.environment
        lines = [
            f"{self.data.name}: images of {channels} x {height} x {width}; UNet2DModel with {parameters:,} parameters; "
            f"{training.steps} steps of {training.batch_size} images",
            f"{place['processes']} process(es) on {place['device']}, {place['threads_per_process']} thread(s) each, "
            f"{self.batches.micro_batch_size} images per process and pass, {training.gradient_accumulation_steps} "
            f"pass(es) per step, mixed precision {place['mixed_precision']}; writing to {self.folder}",
        ]
        if self.config.evaluation.extractor:
            lines.append(self._describe_evaluation())
        if self.resumed:
            lines.append(f"going on from {self.resumed}, after step {self.state.step} of {training.steps}")
        return "\n".join(lines)

    def _describe_evaluation(self) -> str:
        evaluation, training = self.config.evaluation, self.config.training
        rounds = math.ceil(training.steps / evaluation.every) if evaluation.every else 1
        passes = rounds * evaluation.num_images * evaluation.num_inference_steps
        share = passes / (3 * training.steps * training.batch_size)  # a backward pass costs two forward ones
        return (
            f"scores: {rounds} round(s) of {evaluation.num_images} images in {evaluation.num_inference_steps} steps, "
            f"{passes:,} passes of an image through the network, {share:.1%} of what the training takes"
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start
