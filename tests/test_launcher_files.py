"""The launcher files, read by the installed accelerate: what each would start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from ddpm_hf import UNet2DModel
from ddpm_hf.training.optimization import shard_by_blocks

FOLDER = Path(__file__).parent.parent / "configs" / "accelerate"
# name -> processes, machines, mixed precision, and the flag that picks the strategy
WOULD_START = {
    "cpu": (1, 1, "no", "use_cpu"),
    "cpu_2_processes": (2, 1, "no", "multi_gpu"),
    "single_gpu": (1, 1, "bf16", None),
    "multi_gpu": (4, 1, "bf16", "multi_gpu"),
    "multi_node": (8, 2, "bf16", "multi_gpu"),
    "fsdp": (4, 1, "bf16", "use_fsdp"),
    "fsdp_zero2": (4, 1, "bf16", "use_fsdp"),
    "mps": (1, 1, "no", None),
}


def test_every_file_is_here() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(WOULD_START)


@pytest.mark.parametrize("name", WOULD_START)
def test_a_launcher_file_starts_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FOLDER / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "x.py"]))
    processes, machines, precision, strategy = WOULD_START[name]
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert arguments.mixed_precision == precision
    picked = {flag for flag in ("use_cpu", "multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, flag)}
    assert picked == ({strategy} if strategy else set())
    if strategy == "use_fsdp":
        assert str(arguments.fsdp_version) == "2"
        assert str(arguments.fsdp_reshard_after_forward).lower() == ("true" if name == "fsdp" else "false")
        assert arguments.fsdp_transformer_layer_cls_to_wrap is None  # not every network has a block of each type


@pytest.mark.parametrize(
    ("down", "up", "middle"),
    [
        ("DownBlock2D", "UpBlock2D", None),
        ("AttnDownBlock2D", "AttnUpBlock2D", "UNetMidBlock2D"),
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "UNetMidBlock2D"),
    ],
)
def test_fsdp_shards_the_blocks_of_any_network(down: str, up: str, middle: str | None) -> None:
    network = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", down), up_block_types=(up, "UpBlock2D"), mid_block_type=middle,
    )  # fmt: skip
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    accelerator: Any = SimpleNamespace(distributed_type="FSDP", state=SimpleNamespace(fsdp_plugin=plugin))
    shard_by_blocks(accelerator, network)
    is_sharded = fsdp2_prepare_auto_wrap_policy(plugin, network)
    assert is_sharded is not None
    blocks = {name for name, module in network.named_modules() if is_sharded(module)}
    places = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1"]
    assert blocks == {*places, *(["mid_block"] if middle else [])}
