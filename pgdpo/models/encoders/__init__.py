"""Clips to latents and back, prompts to embeddings: a pipeline's VAE and text encoders."""
