"""What ddpm-hf-demo does, once its settings are known to be right."""

import socket

from ddpm_hf.cli.demo import DemoConfig
from ddpm_hf.command_line import fail
from ddpm_hf.demo.models import Source
from ddpm_hf.demo.space import address_of, space_push
from ddpm_hf.hub.repository import NOT_PUSHED, PushError, Repository


def run(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or push it; problems end the program."""
    source = Source(config.model, config.threads)
    if config.push_to_hub is None:
        serve(config, source)
        return
    repository = Repository(config.push_to_hub, "space", config.hub_private_repo)
    source.model()  # a Space of a model that cannot be loaded would be of no use
    push = space_push(source, config.push_to_hub, config.hub_license)
    try:
        repository.prepare()
        print(push.to(repository))
        print(f"The Space builds now, which takes some minutes: {address_of(config.push_to_hub)}")
    except PushError as error:
        fail(str(error), status=NOT_PUSHED)


def serve(config: DemoConfig, source: Source) -> None:
    """Show the page.

    Raises:
        ValueError: the address or the port cannot be used.
    """
    _check_address(config.host, config.port or 0)
    if source.run is None:
        source.model()  # what is wrong with it is said before Gradio is loaded
    from ddpm_hf.demo.page import Page  # Gradio, which a push does not need

    page = Page(source)
    page.launch(server_name=config.host, server_port=config.port, prevent_thread_lock=True, quiet=True)
    print(f"{source.name} is shown at {page.blocks.local_url} (Ctrl-C ends it)", flush=True)
    page.wait()


def _check_address(host: str, port: int) -> None:
    """Try an address, or else Gradio would try it a hundred times.

    Raises:
        ValueError: it cannot be used.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        reason = error.strerror or error
        raise ValueError(f"the page cannot be served at {where} ({reason}); give another --host or --port") from error
