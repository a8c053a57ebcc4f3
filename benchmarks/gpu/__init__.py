"""What a GPU shows, `python -m benchmarks gpu`: one command that needs no network, and no look at it while it runs.

Its parts, in order: `truth` (results against the CPU's and diffusers'), `network` (the UNet's speed and memory),
`rates` (sampling and metrics), `race` (training on CIFAR-10 against a plain loop of diffusers' parts). docs/gpu.md
holds the results.
"""
