"""The README.md of an export: what was trained on what, with what result, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Template

from pgdpo import __version__
from pgdpo.data.files import atomic_path
from pgdpo.evaluation.formats import objective_name, percent
from pgdpo.settings import Config
from pgdpo.training.checkpoint import read_state
from pgdpo.training.published import latest_checkpoint

EXPERTS = {
    "high_noise": "high noise: `pipeline.load_lora_weights(folder)`",
    "low_noise": "low noise: `pipeline.load_lora_weights(folder, load_into_transformer_2=True)`",
}
_CARD = Template(
    """---
{{ metadata }}
---

# {{ title }}

{{ objective }} on preference pairs, trained with pgdpo {{ version }}.

| | |
|---|---|
{% for name, value in rows.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{% if measured -%}
Measured after step {{ measured.steps }}, reference against aligned model at equal seeds, 95% intervals:

| | |
|---|---|
{% for name, value in figures.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{% endif -%}
""",
    keep_trailing_newline=True,
)


def write_model_card(config: Config, folder: Path) -> None:
    """`folder/README.md`: base model, objective, data and its hash, settings, and the figures of `results.json`.

    The figures are left out where there is no `results.json` of the exported step.
    """
    state = read_state(latest_checkpoint(config.run_dir))
    measured = _results(config.run_dir / "results.json", state["step"])
    path, adapter, train = config.model.path, config.model.adapter, config.train
    metadata = ModelCardData(
        base_model=path if path.count("/") == 1 and not Path(path).exists() else None,
        library_name="diffusers",
        tags=["pgdpo", "preference-optimization", config.objective["name"], *(["lora"] if adapter else [])],
    )
    rows = {
        "base model": f"{config.model.family}, `{path}` ({state['identity']['model_hash']})",
        **({"expert": EXPERTS[config.model.expert]} if config.model.expert else {}),
        "objective": f"`{json.dumps(config.objective)}`",
        "trained": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}" if adapter else "all weights",
        "steps": f"{state['step']} of {train.global_batch_pairs} pairs",
        "learning rate": f"{train.learning_rate:g}, {train.schedule}, {train.warmup_steps} steps of warm-up",
        "data": f"`{config.data.train}`, prepared files' hash `{state['identity']['data_hash']}`",
        "seed": train.seed,
    }
    text = _CARD.render(
        metadata=metadata.to_yaml(),
        title=config.run_dir.name,
        objective=objective_name(config.objective["name"]),
        version=__version__,
        rows=rows,
        measured=measured,
        figures=_figures(measured) if measured else {},
    )
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _results(path: Path, step: int) -> dict | None:
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    return results if results["steps"] == step else None


def _figures(results: dict) -> dict[str, str]:
    shares = {
        "win rate over the reference": results["win_rate"],
        "displacement (held-out chosen clips that became less likely)": results["displacement"],
    }
    return {
        name: f"{percent(share['value'])} ({percent(share['low'])} to {percent(share['high'])})"
        for name, share in shares.items()
        if share
    }
