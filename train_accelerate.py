"""Train a denoising diffusion model, draw images from it, score them, and save it all.

    accelerate launch train_accelerate.py                                         the embedded digits, a few minutes
    accelerate launch train_accelerate.py --data.name my/photos --data.resolution 64        a folder of photographs
    accelerate launch train_accelerate.py --seed 1 --output_dir runs/digits-1     another seed, elsewhere
    accelerate launch --multi_gpu --num_processes 2 train_accelerate.py           two processes, also without a GPU
    accelerate launch train_accelerate.py --config cifar10 --dry_run              what a run would cost
    accelerate launch train_accelerate.py --push_to_hub --hub_model_id me/ddpm-digits       and to the Hub (docs/hub.md)
    python train_accelerate.py --help                                             every setting

Processes and precision come from the launcher (configs/accelerate), all else from a recipe (configs/train) and the
command line over it. The same command again continues a run that was stopped or killed. The command ddpm-hf-train, and
`accelerate launch -m ddpm_hf.cli.train`, are this script for those who have the package alone.
"""

import math
import sys
from typing import TYPE_CHECKING

from ddpm_hf.signals import STOPPED, ended_by_signals

if TYPE_CHECKING:  # what loads torch is imported when the settings are known to be right, so that --help is quick
    from ddpm_hf.metrics.evaluation import Results
    from ddpm_hf.training.run import Run
    from ddpm_hf.training.settings import Config


def train(run: "Run") -> None:
    """Take all the steps that are left. Each is a function of (state, step, seed) alone."""
    from ddpm_hf.diffusion.losses import training_loss
    from ddpm_hf.sampling.denoising import network_of

    accelerator, model, state = run.accelerator, run.setup.model, run.state
    training, evaluation = run.config.training, run.config.evaluation
    denoiser = run.denoiser
    with run.under_way():
        for step, micro_batches in run.steps():
            run.set_learning_rate(step)
            losses = []
            for index, batch in enumerate(micro_batches):
                with run.accumulate(step, index):
                    x_t = denoiser.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
                    # prepare() has put autocast round the network and only there: noise, target and loss stay float32.
                    network = network_of(model, batch.augment_labels)
                    output = denoiser.of(network).output(x_t, batch.t, batch.labels)
                    loss = training_loss(denoiser, output, batch.x_0, batch.noise, batch.t, run.objective)
                    accelerator.backward((batch.weights * loss).mean())
                losses.append(loss.detach())

            # The one place where the host waits for the device: a step with a gradient that is not finite is not taken.
            grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm))
            taken = math.isfinite(grad_norm)
            if taken or state.scaler:  # a scaler skips the step by itself, and lowers its scale
                state.optimizer.step()
            state.optimizer.zero_grad()
            if taken:
                state.ema.update()
            run.count(micro_batches, losses, grad_norm if taken else None)
            run.check_gradients()

            if run.is_due(training.log_every) or run.is_last:
                run.write_log()
            if run.is_due(evaluation.loss_every):
                run.look_at_held_out()
            if run.is_due(training.sample_every):
                run.draw_grid()
            if run.is_due(evaluation.every) and not run.is_last:  # the last step's images are scored in any case
                run.score()
            if run.is_snapshot_due():
                run.keep_snapshot()
            stopping = run.is_stop_asked()
            if stopping or run.is_save_due():
                run.save()
            if stopping:
                run.stop()


def complete(config: "Config") -> "tuple[Results | None, str | None]":
    """A dry run, or the run itself from its processes to its scores: the scores, and what could not be pushed.

    The former is None after a dry run, the latter where there is nothing to say.
    """
    from ddpm_hf.launch import end_processes, start_processes
    from ddpm_hf.lock import only_writer
    from ddpm_hf.training.dry_run import dry_run
    from ddpm_hf.training.report import reported
    from ddpm_hf.training.run import Run
    from ddpm_hf.training.setup import build

    results = not_pushed = None
    accelerator = start_processes(
        config.threads, config.training.gradient_accumulation_steps, config.training.trackers, config.output_dir
    )
    if config.dry_run:
        dry_run(config, accelerator, train)
    else:
        with only_writer(config.output_dir, accelerator):
            run = Run(build(config, accelerator))
            train(run)
            results, images = run.score()
            run.finish(results, images)
            if accelerator.is_main_process:
                print(reported(run.setup, results))
            not_pushed = run.publisher.close() if run.publisher else None
            run.check_end()
            del run  # the network goes before the process group (launch.end_processes)
    end_processes(accelerator)
    return results, not_pushed


def main() -> None:
    """Settings, then what they ask for; what goes wrong ends it with one sentence."""
    from ddpm_hf.command_line import ending_in_one_sentence, fail, parse_config
    from ddpm_hf.recipes import default_recipes

    config = parse_config(sys.argv[1:], *default_recipes())
    from ddpm_hf.hub.repository import NOT_PUSHED
    from ddpm_hf.training.checkpoints import SaveError
    from ddpm_hf.training.run import Stopped

    try:
        with ending_in_one_sentence():
            _, not_pushed = complete(config)
    except Stopped as stopped:
        fail(str(stopped), status=STOPPED)
    except (FloatingPointError, SaveError) as error:
        fail(str(error), status=1)
    if not_pushed:
        fail(not_pushed, status=NOT_PUSHED)


if __name__ == "__main__":
    with ended_by_signals():
        main()
