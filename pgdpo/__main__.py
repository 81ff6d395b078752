"""`python -m pgdpo` is `pgdpo`, so that torchrun and the deepspeed launcher can start it."""

from pgdpo.cli import main

main()
