"""A page on which a model is seen and tried: images of seeds, samplers side by side, inpainting, curves.

    ddpm-hf-demo runs/digits
    ddpm-hf-demo google/ddpm-cifar10-32 --port 8000
    ddpm-hf-demo runs/digits --push_to_hub me/digits-demo

It needs Gradio: ``pip install "ddpm-hf[demo]"``.
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from ddpm_hf.command_line import ending_in_one_sentence, fail, parse_settings
from ddpm_hf.settings import check


@dataclass(frozen=True)
class DemoConfig:
    """Settings of ddpm-hf-demo.

    Args:
        model: Folder of a pipeline or of a training run, which may still be training, or a Hub id, with @REVISION for a
            branch, tag or commit other than main.
        host: Address at which the page is served. The default is seen on this machine alone; 0.0.0.0 shows it to the
            whole network.
        port: Port of the page; null takes the first free one from 7860.
        push_to_hub: OWNER/NAME of a Space of the Hub to make of the page, in place of serving it.
        hub_private_repo: Make the Space private when it is created.
        hub_license: License of the model, for the card of the Space.
        threads: CPU threads; null for all usable cores.
    """

    model: str
    host: str = "127.0.0.1"
    port: int | None = None
    push_to_hub: str | None = None
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"
    threads: int | None = None

    def __post_init__(self) -> None:
        check(bool(self.model.strip()), "model", repr(self.model), "a folder or a Hub id")
        check(bool(self.host.strip()), "host", repr(self.host), "an address, such as 127.0.0.1 or 0.0.0.0")
        check(self.port is None or 1 <= self.port <= 65535, "port", self.port, "null or from 1 to 65535")
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    config = parse_settings(DemoConfig, sys.argv[1:], "Show a page to try a model on.", is_positional=True)
    if find_spec("gradio") is None:
        fail("the page needs Gradio, which is not installed; run 'pip install \"ddpm-hf[demo]\"'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing of what is done here is told to anybody
    from ddpm_hf.cli import serving  # only now, as it loads torch

    serving.run(config)


if __name__ == "__main__":
    main()
