"""Clips and prompts to prepared pairs, once; and whether these are still of what they were made of."""
