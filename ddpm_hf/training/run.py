"""A training run while it lives: the services that the loop of train_accelerate.py calls by their names."""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ddpm_hf.data.batches import Batch
from ddpm_hf.files import remove_temporaries, write_json, write_text, written_whole
from ddpm_hf.images import save_png
from ddpm_hf.launch import StopSignal, decided_by_main
from ddpm_hf.metrics.evaluation import Results
from ddpm_hf.metrics.figures import save_curve, save_losses
from ddpm_hf.metrics.table import HELD_OUT, SAMPLES, SCORES, ScoreKind
from ddpm_hf.progress import bar_of, duration, rate
from ddpm_hf.randomness import seed_from
from ddpm_hf.training.bits import repeatable
from ddpm_hf.training.checkpoints import SaveError, averages_by_length, averages_of, save_pipeline
from ddpm_hf.training.dispensable import Dispensable
from ddpm_hf.training.log import MetricsLog, read_log
from ddpm_hf.training.optimization import learning_rate, objective_of
from ddpm_hf.training.publish import Publisher
from ddpm_hf.training.report import described, results_of
from ddpm_hf.training.setup import Setup, shows_progress
from ddpm_hf.training.snapshots import FOLDER, clear_snapshots, copy_snapshots, save_snapshot
from ddpm_hf.training.trackers import send_picture, start_trackers

TIME_TO_STOP = 20
"""Seconds that a push may take when a run ends early: whoever sends a signal seldom waits longer than 30."""


logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal asked the run to stop; the step was finished and saved."""


class Run:
    """A run that has begun: its folder exists, and a summary of the run has been printed.

    Args:
        setup: The parts of the run.

    Attributes:
        seconds: Time spent so far, by kind of work.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config, self.accelerator = setup, setup.config, setup.accelerator
        self.state, self.folder = setup.state, setup.config.output_dir
        self.denoiser, self.objective = setup.denoiser, objective_of(setup.config.training)
        self.seconds = {"training": 0.0, "saving": 0.0, "sampling": 0.0, "scoring": 0.0}
        self.seconds |= setup.record.get("seconds", {})
        self.publisher: Publisher | None = None
        self._stop = StopSignal(self.accelerator)
        self._dispensable = Dispensable(self.accelerator.is_main_process)
        self._tells = shows_progress(self.config, self.accelerator)
        self._bar = bar_of("training", self.config.training.steps, "step", shown=False)
        self._first, self._began = self.state.step, time.perf_counter()
        self._since = self._began
        decided_by_main(self.accelerator, self._begin)
        start_trackers(self.accelerator, self.config, is_resumed=setup.resumed is not None)
        self.log = MetricsLog(
            self.folder / "metrics.jsonl",
            self.accelerator,
            self.config.training.batch_size,
            len(setup.scheduler),
            after=self.state.step,
            pending=setup.record.get("log"),
            written=setup.record.get("log_hash"),
        )
        for note in self.log.notes:
            print(f"Note: {note}.", file=sys.stderr)

    def _begin(self) -> None:
        setup, config = self.setup, self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshots = self.folder / FOLDER
        remove_temporaries(self.folder, self.folder / "samples", snapshots)
        setup.checkpoints.clear(everything=config.resume == "never")
        if config.resume == "never":
            clear_snapshots(snapshots)
        elif setup.resumed and setup.resumed.parent.parent.resolve() != self.folder.resolve():
            copy_snapshots(setup.resumed.parent.parent / FOLDER, snapshots, self.state.step)
        write_text(self.folder / "config.yaml", config.to_yaml())
        write_json(self.folder / "environment.json", setup.environment)
        log = self.folder / "metrics.jsonl"
        if setup.resumed and not log.exists() and (setup.resumed.parent / log.name).exists():
            with written_whole(log) as temporary:
                shutil.copyfile(setup.resumed.parent / log.name, temporary)
        if setup.repository is not None:
            self.publisher = Publisher(self.folder, setup.repository, config.hub_strategy, config.hub_license)
        if not config.quiet:
            print(described(setup), flush=True)
        for note in setup.notes:
            print(f"Note: {note}.", file=sys.stderr)

    # What the loop asks for before and within a step.

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Within the context a signal lets the step end first, and an end before the last step is pushed too."""
        model, is_on_cuda = self.setup.model, self.accelerator.device.type == "cuda"
        model.train()
        with self._stop.caught(), repeatable(self.config.training.deterministic and is_on_cuda):
            try:
                yield
            except (Stopped, FloatingPointError, SaveError) as end:
                problem = self.publisher.close(TIME_TO_STOP) if self.publisher else None
                end.args = (f"{end}; {problem}" if problem else str(end),)
                self.accelerator.wait_for_everyone()  # a launcher ends the one that pushes with the first to end
                raise
        model.eval()

    def steps(self) -> Iterator[tuple[int, list[Batch]]]:
        """The steps that are left, each with its micro-batches."""
        total, first = self.config.training.steps, self.state.step
        self._began = self._since = time.perf_counter()
        with bar_of("training", total, "step", self._tells, initial=first) as self._bar:
            for step, micro_batches in self.setup.batches.of_steps(first, total):
                yield step, micro_batches
                self._since = time.perf_counter()
                self._bar.update()

    @contextmanager
    def accumulate(self, step: int, index: int) -> Iterator[None]:
        """Micro-batch `index` of a step: dropout follows from (seed, step, process, index), and gradients add up."""
        torch.manual_seed(seed_from("dropout", self.config.seed, step, self.accelerator.process_index, index))
        with self.accelerator.accumulate(self.setup.model):
            yield

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rate of the schedule."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.training)

    def count(self, micro_batches: Sequence[Batch], losses: Sequence[Tensor], grad_norm: float | None) -> None:
        """Count a step as done, and remember its losses for the log and for the choice of timesteps.

        Args:
            micro_batches: Its micro-batches.
            losses: Losses of their images, ``(b,)`` each.
            grad_norm: The norm of the gradient before it was clipped; None if the step was skipped.
        """
        if grad_norm is not None:
            self.setup.batches.learn([batch.t for batch in micro_batches], losses)
        all_losses, all_t = torch.cat(list(losses)), torch.cat([batch.t for batch in micro_batches])
        self.state.count_step(grad_norm is not None)
        weights = torch.cat([batch.weights for batch in micro_batches])
        self.log.add(all_losses, all_t, grad_norm, weights)
        self.seconds["training"] += time.perf_counter() - self._since
        if self.state.step == self._first + 1 and self._tells and not self.is_due(self.config.training.log_every):
            # At once, so that a log shows that the run trains; the other losses stay on the device until a line is due.
            self._tell(f"loss {float((weights * all_losses).sum() / weights.sum()):.4f}, of its first images alone")

    # What is due after a step.

    @property
    def is_last(self) -> bool:
        """Whether the step just done was the last."""
        return self.state.step == self.config.training.steps

    def is_due(self, every: int | None) -> bool:
        """Whether an action that is due every so many steps is due after this one."""
        return every is not None and self.state.step % every == 0

    def is_save_due(self) -> bool:
        """While steps are skipped the weights may be ruined already, and the older checkpoints are the good ones."""
        return self.is_last or (self.is_due(self.config.training.checkpoint_every) and not self.state.skipped_in_a_row)

    def is_snapshot_due(self) -> bool:
        """Whether averages of relative lengths are to be kept as they are after this step."""
        every = self.config.training.snapshot_every
        return every is not None and self.state.ema.num_updates > 0 and (self.is_due(every) or self.is_last)

    def is_stop_asked(self) -> bool:
        """Whether any process has received SIGTERM or SIGINT, perhaps a step ago. All processes must call it."""
        return self._stop.agreed(at_once=self.is_last)

    # The services.

    def check_gradients(self) -> None:
        """End the run when too many steps in a row were skipped.

        Raises:
            FloatingPointError: with what to try.
        """
        state, training = self.state, self.config.training
        if state.skipped_in_a_row > training.max_skipped_steps:
            first = state.step - state.skipped_in_a_row + 1
            kept, _ = self.setup.checkpoints.newest()
            raise FloatingPointError(
                f"the gradient was not finite at steps {first} to {state.step}, and none of them was taken; try a "
                f"lower training.learning_rate (it is {learning_rate(state.step - 1, training):g} there) or a longer "
                f"training.warmup_steps; the last good checkpoint is {kept or 'none'}"
            )

    def write_log(self) -> None:
        """A line of metrics.jsonl, which is also told, and the loss beside the bar."""
        state, training = self.state, self.config.training
        line = self.log.write(
            state.step,
            learning_rate=learning_rate(state.step - 1, training),
            ema_decay=state.ema.decay_now(training.ema_decays[0]),
            seconds_waited=self.setup.batches.seconds_waited,
        )
        loss = None if line["loss"] is None else f"{line['loss']:.4f}"
        self._bar.set_postfix(loss=loss)
        taken = time.perf_counter() - self._began
        left = taken / (state.step - self._first) * (training.steps - state.step)
        when = f"{duration(taken)} in all" if self.is_last else f"{duration(left)} left"
        self._tell(f"loss {loss or 'none'}, {rate(line['images_per_second'], 'image')}, {when}")

    def look_at_held_out(self) -> None:
        """The loss on held-out images: a line of metrics.jsonl, and a picture beside the training loss."""
        assert self.setup.held_out_loss is not None
        with self._timed("scoring"):
            quarters = self.setup.held_out_loss(self.setup.model)
        line: dict[str, float] = {"step": self.state.step, "held_out_loss": sum(quarters) / len(quarters)}
        self._tell(f"loss of held-out images {line['held_out_loss']:.4f}")
        self.log.write_line(line | {f"held_out_loss_quarter_{i}": loss for i, loss in enumerate(quarters, start=1)})
        self._keep_picture("loss.png", self._draw_losses)

    def draw_grid(self) -> None:
        """A grid of samples of the averaged weights, always from the same seeds, into samples/ and to the trackers."""
        images = self._draw(self.config.evaluation.grid_images)
        grid, step = self.setup.evaluation.grid(images), self.state.step
        name = f"step-{step:08d}.png"
        self._keep_picture(name, lambda path: save_png(grid, path))
        self._tell(f"grid of samples {self.folder / 'samples' / name}")
        with self._dispensable.part("the trackers' pictures", Exception):  # whatever it is that they raise
            send_picture(self.accelerator, "samples", grid, step)

    def score(self) -> tuple[Results, Tensor]:
        """Draw the images of the averaged weights and score them; keep the best weights during training."""
        images = self._draw(self.config.evaluation.num_images)
        with self._timed("scoring"):
            results = self.setup.evaluation.score(images)
        if results.sets:
            self._tell(", ".join(f"{name} {value:.4g}" for name, value in results.of(SAMPLES).items()))
        if self.config.evaluation.every:
            self._keep_best(results)
        return results, images

    def keep_snapshot(self) -> None:
        """The averages of relative lengths as they are, from which others are put together afterwards."""
        state = self.state
        with self._timed("saving"), self._dispensable.part("a snapshot of averages", (OSError, SafetensorError)):
            averages = averages_by_length(state)
            updates, folder = state.ema.num_updates, self.folder / FOLDER
            decided_by_main(self.accelerator, lambda: save_snapshot(folder, state.step, updates, averages))

    def save(self) -> None:
        """A checkpoint of this step.

        Raises:
            SaveError: it could not be written.
        """
        with self._timed("saving"):
            record = {
                "config": self.config.to_dict(),
                "environment": self.setup.environment,
                "data": self.setup.data.fingerprint,
                "log": self.log.state_dict(),
                "log_hash": self.log.hash,
                "history": self.setup.history,
                "seconds": self.seconds,
            }
            checkpoint = self.setup.checkpoints.save(self.state, self.setup.saved_scheduler, record)
        self._tell(f"checkpoint {checkpoint}")
        if self.publisher is not None:
            self.publisher.saved(checkpoint)

    def stop(self) -> None:
        """End the run early, after a save.

        Raises:
            Stopped: always.
        """
        done = f"step {self.state.step} of {self.config.training.steps}"
        raise Stopped(f"stopped by a signal; {done} is saved, and the same command goes on from there")

    def finish(self, results: Results, images: Tensor) -> None:
        """Write the pipeline, the results and the grid into the run's folder.

        Raises:
            SaveError: the pipeline or the results could not be written; the results have been printed.
        """
        averages = averages_of(self.state)

        def write() -> None:
            save_pipeline(self.folder, self.state.unet, averages, self.setup.saved_scheduler, self.setup.data.format)
            write_json(self.folder / "metrics.json", results_of(self.setup, results, self.seconds))

        try:
            decided_by_main(self.accelerator, write)
        except (OSError, SafetensorError) as error:
            if self.accelerator.is_main_process:
                print(self.setup.evaluation.table(results), flush=True)
            raise SaveError(
                f"the pipeline and the scores could not all be saved to {self.folder} ({error}); the checkpoint of "
                f"step {self.state.step} is there, so mend the cause, and the same command makes them again"
            ) from error
        self._keep_picture("grid.png", lambda path: save_png(self.setup.evaluation.grid(images), path))
        nearest = self.setup.evaluation.nearest(images)
        if nearest is not None:
            self._keep_picture("nearest.png", lambda path: save_png(nearest, path))
        if self.publisher is not None:
            self.publisher.finished()

    def check_end(self) -> None:
        """Say it where the last steps of the run trained nothing; all is saved by then.

        Raises:
            FloatingPointError: they were skipped. (In float16 one may be, for its scale to come down.)
        """
        skipped, training = self.state.skipped_in_a_row, self.config.training
        if skipped > (1 if self.state.scaler else 0):
            raise FloatingPointError(
                f"all is saved, but the gradient was not finite at the last {skipped} of {training.steps} steps, and "
                "none of them was taken; a new run with a lower training.learning_rate or a longer "
                "training.warmup_steps may not end so"
            )

    def _draw(self, num_images: int) -> Tensor:
        with self._timed("sampling"), self.state.ema.averaged_weights():
            return self.setup.evaluation.draw(self.state.unet, num_images)

    def _keep_best(self, results: Results) -> None:
        score = SCORES[self.config.evaluation.best_by]
        values = {"step": self.state.step} | results.of(SAMPLES)
        self.log.write_line(values)
        self._keep_picture(f"{score.name}.png", lambda path: self._draw_curve(path, score, results))
        earlier = (self.state.best or {}).get(score.name)
        if not score.is_better(values[score.name], than=earlier):
            return
        averages = averages_of(self.state)

        def write() -> None:
            with written_whole(self.folder / "best") as partial:
                save_pipeline(partial, self.state.unet, averages, self.setup.saved_scheduler, self.setup.data.format)
                write_json(partial / "metrics.json", values)

        # Weights that could not be kept are not the best that are kept, so worse ones may still take that place.
        with self._dispensable.part("its best weights so far", (OSError, SafetensorError)):
            decided_by_main(self.accelerator, write)
            self.state.best = values
            self._tell(f"the best weights so far {self.folder / 'best'}")

    def _draw_losses(self, path: Path) -> None:
        lines = read_log(self.folder / "metrics.jsonl")
        of_training, of_held_out = (
            {line["step"]: line[key] for line in lines if line.get(key)} for key in ("loss", "held_out_loss")
        )
        save_losses(path, of_training, of_held_out)

    def _draw_curve(self, path: Path, score: ScoreKind, results: Results) -> None:
        lines = read_log(self.folder / "metrics.jsonl")
        rounds = {line["step"]: line[score.name] for line in lines if score.name in line}
        rounds[self.state.step] = results.of(SAMPLES)[score.name]  # which a full disk may have kept from the file
        save_curve(path, rounds, score, results.of(HELD_OUT).get(score.name))

    def _keep_picture(self, name: str, write: Callable[[Path], None]) -> None:
        """Have the main process write a picture into samples/."""
        if self.accelerator.is_main_process:
            with self._dispensable.part(f"pictures in {self.folder / 'samples'}"):
                write(self.folder / "samples" / name)

    def _tell(self, news: str) -> None:
        """A line of what there is at this step, where no bar shows it."""
        if self._tells:
            logger.info("step %d of %d: %s", self.state.step, self.config.training.steps, news)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start
