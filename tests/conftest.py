"""One process, one mode: Triton reads TRITON_INTERPRET when it is first imported, and diffusers imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"
