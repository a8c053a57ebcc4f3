"""Train a denoising diffusion model, draw images from it, score them, and save it all.

    accelerate launch train_accelerate.py                                         the embedded digits, a few minutes
    accelerate launch train_accelerate.py --seed 1 --output_dir runs/digits-1     another seed, elsewhere
    accelerate launch --multi_gpu --num_processes 2 train_accelerate.py           two processes, also without a GPU
    accelerate launch train_accelerate.py --config configs/train/cifar10.yaml --dry_run     what a run would cost
    accelerate launch train_accelerate.py --push_to_hub --hub_model_id me/ddpm-digits       and to the Hub (docs/hub.md)
    python train_accelerate.py --help                                             every setting

Processes and precision come from the launcher (configs/accelerate), all else from a recipe (configs/train) and the
command line over it. The same command again goes on where a stopped or killed run was.
"""

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf.command_line import fail, parse_config
from ddpm_hf.training.settings import Config

if TYPE_CHECKING:  # all that loads torch is imported when the settings are known to be right, so that --help is quick
    from accelerate import Accelerator

    from ddpm_hf.training.run import Run


def main() -> None:
    config = parse_config(sys.argv[1:], default_recipe=Path(__file__).parent / "configs" / "train" / "digits.yaml")
    from ddpm_hf.hub.repository import NOT_PUSHED
    from ddpm_hf.launch import STOPPED, end_processes, start_processes
    from ddpm_hf.training.checkpoints import SaveError
    from ddpm_hf.training.run import Run, Stopped

    not_pushed = None
    try:
        accelerator = start_processes(
            config.threads,
            config.training.gradient_accumulation_steps,
            config.training.trackers,
            config.output_dir,
        )
        run = Run(config, accelerator)
        if config.dry_run:
            print_cost(config, accelerator)
        else:
            run.start()
            train(run)
            results, images = run.evaluate()
            run.finish(results, images)
            if accelerator.is_main_process:
                print(run.report(results))
            not_pushed = run.publisher.close() if run.publisher else None
        del run
        end_processes(accelerator)
    except Stopped as stopped:
        fail(str(stopped), status=STOPPED)
    except (FloatingPointError, SaveError) as error:
        fail(str(error), status=1)
    except (ValueError, NotImplementedError, OSError) as error:
        fail(str(error))
    if not_pushed:
        fail(not_pushed, status=NOT_PUSHED)


def train(run: "Run") -> None:
    """Take all the steps that are left. Each is a function of (state, step, seed) alone."""
    import torch

    from ddpm_hf.diffusion.losses import training_loss
    from ddpm_hf.randomness import seed_from
    from ddpm_hf.training.optimization import learning_rate

    accelerator, model, state, training = run.accelerator, run.model, run.state, run.config.training
    diffusion = run.scheduler.diffusion
    model.train()
    for step, micro_batches in run.steps():
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, training)

        losses = []
        for index, batch in enumerate(micro_batches):
            torch.manual_seed(seed_from("dropout", run.config.seed, step, accelerator.process_index, index))
            with accelerator.accumulate(model):
                x_t = diffusion.q_sample(batch.x_0, batch.t, batch.noise)
                # prepare() has put autocast round the network and only there: noise, target and loss stay float32.
                output = run.denoiser.output(x_t, batch.t, batch.labels)
                loss = training_loss(run.denoiser, output, batch.x_0, batch.noise, batch.t, run.objective)
                accelerator.backward((batch.weights * loss).mean())
            losses.append(loss.detach())

        # The one place where the host waits for the device: a step with a gradient that is not finite is not taken.
        grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm))
        taken = math.isfinite(grad_norm)
        if taken or state.scaler:  # a scaler skips the step by itself, and lowers its scale
            state.optimizer.step()
        state.optimizer.zero_grad()
        all_losses, all_t = torch.cat(losses), torch.cat([batch.t for batch in micro_batches])
        if taken:
            state.ema.update()
            run.batches.learn(all_t, all_losses)

        state.count_step(taken)
        weights = torch.cat([batch.weights for batch in micro_batches])
        run.log.add(all_losses, all_t, grad_norm if taken else None, weights)
    model.eval()


def print_cost(config: Config, accelerator: "Accelerator") -> None:
    """Go through a whole run in small, and print what the full one would cost."""
    from ddpm_hf.training.dry_run import cost_of, shortened
    from ddpm_hf.training.run import Run

    folder = config.output_dir.with_name(f".{config.output_dir.name}.dry_run")
    try:
        run = Run(shortened(config, folder), accelerator)
        run.start()
        train(run)
        if config.training.compile:  # for drawing too; once, so not in the time of an image
            run.evaluation.draw(run.state.unet, run.config.evaluation.num_images)
        run.finish(*run.evaluate())
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            print(cost_of(config, folder, run.seconds, accelerator.num_processes))
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
