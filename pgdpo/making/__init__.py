"""Preference pairs made from real clips or prompts: by the model, or by corrupting what is there (`pgdpo make`)."""
