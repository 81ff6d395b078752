"""What training looks at on its way, and never trains on: figures of held-out pairs, clips of held-out prompts."""
