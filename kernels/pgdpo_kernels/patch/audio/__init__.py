"""Transformers of sound, a file for each that shares blocks or came with the same diffusers."""
