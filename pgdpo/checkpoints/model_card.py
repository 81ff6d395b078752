"""The README.md of an export: what was trained on what, with what result, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Template

from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.runs import Both, Run, evaluation_of
from pgdpo.config import Config, DataConfig, ModelConfig
from pgdpo.config.families import licence_of, licence_said
from pgdpo.files.atomic import atomic_path
from pgdpo.files.pipeline import is_hub_id
from pgdpo.messages.formats import objective_name, percent
from pgdpo.models.weights.stored_dtypes import described_dtypes
from pgdpo.version import __version__

EXPERTS = {
    "high_noise": "high noise: `pipeline.load_lora_weights(folder)`",
    "both": "both, high and low noise: the lines below",
    "low_noise": "low noise: `pipeline.load_lora_weights(folder, load_into_transformer_2=True)`",
}
BOTH_LORAS = """pipeline.load_lora_weights(folder, subfolder="high_noise")
pipeline.load_lora_weights(folder, subfolder="low_noise", load_into_transformer_2=True)"""
BOTH_MERGED = """pipeline.transformer = type(pipeline.transformer).from_pretrained(folder, subfolder="transformer")
pipeline.transformer_2 = type(pipeline.transformer_2).from_pretrained(folder, subfolder="transformer_2")"""
CARD, MARK = "README.md", "trained with pgdpo"
_CARD = Template(
    """---
{{ metadata }}
---

# {{ title }}

{{ objective }} on preference data, trained with pgdpo {{ version }}.

| | |
|---|---|
{% for name, value in rows.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{% for code in loaded -%}
```python
{{ code }}
```

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


def write_model_card(run: Run | Both, folder: Path) -> None:
    """`folder/README.md`: base model, objective, data and its hash, settings, and the figures of `results.json`.

    The figures are left out where the exported step was not evaluated.
    """
    config, states = run.record, [part.state for part in run.parts]  # whatever the command was told
    state, hashes = states[0], ", ".join(each["identity"]["model_hash"] for each in states)
    measured = _results(run)
    path, adapter, train = config.model.path, config.model.adapter, config.train
    commit = state["identity"].get("model_commit")
    at = f" at commit `{commit}`" if commit else ""
    metadata = ModelCardData(
        **_terms(config.model),
        base_model_relation=("adapter" if adapter else "finetune") if is_hub_id(path) else None,
        library_name="diffusers",
        tags=["pgdpo", "preference-optimization", config.objective["name"], *(["lora"] if adapter else [])],
    )
    rows = {
        "base model": f"{config.model.family}, `{path}`{at} ({hashes})",
        **({"expert": EXPERTS[config.expert]} if config.expert else {}),
        **_started_from(config),
        "licence": licence_said(config.model.family, path),
        "objective": f"`{json.dumps(config.objective)}`",
        "trained": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}" if adapter else "all weights",
        "written in": described_dtypes(folder),
        "steps": f"{' and '.join(str(each['step']) for each in states)} of {train.global_batch_groups} pairs or groups",
        "learning rate": f"{train.learning_rate:g}, {train.schedule}, {train.warmup_steps} steps of warm-up",
        "data": f"{_data(config.data)}, prepared files' hash `{state['identity']['data_hash']}`",
        "seed": train.seed,
    }
    text = _CARD.render(
        metadata=metadata.to_yaml(),
        title=run.folder.name,
        objective=objective_name(config.objective["name"]),
        version=__version__,
        rows=rows,
        loaded=_loaded(folder) if len(states) > 1 else [],
        measured=measured,
        figures=_figures(measured) if measured else {},
    )
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _terms(model: ModelConfig) -> dict[str, str | None]:
    """The base model and the terms that its weights pass on, under the hub's names for them."""
    known = licence_of(model.family, model.path)
    terms = (
        {"license": known.license, "license_name": known.name, "license_link": known.link} if known else {}
    )
    return {"base_model": model.path if is_hub_id(model.path) else None, **terms}


def _loaded(folder: Path) -> list[str]:
    """The lines that put what a run of both experts exports into a pipeline of the base model."""
    forms = {"high_noise": BOTH_LORAS, "transformer": BOTH_MERGED}
    return [lines for name, lines in forms.items() if (folder / name).is_dir()]


def _data(data: DataConfig) -> str:
    """The manifests, with their shares of the visits, and what of them was held out."""
    sources = (
        [(data.train, None)] if isinstance(data.train, str) else [(s.manifest, s.share) for s in data.train]
    )
    named = [f"`{name}`" + (f" ({share:.3g} of the visits)" if share else "") for name, share in sources]
    held_out = f"; held out: {data.held_out.share:.3g} of the prompts" if data.splits_itself else ""
    return ", ".join(named) + held_out


def _started_from(config: Config) -> dict[str, str]:
    """The weights that a run began with, where they are not the base model's own."""
    rows = {}
    if config.model.transformer is not None:
        rows["transformer"] = f"`{config.model.transformer}`"
    if config.model.adapter is not None and config.model.adapter.init is not None:
        what = {"init": "frozen, it is the reference", "base": "the reference is the base model"}
        rows["started from"] = (
            f"the LoRA `{config.model.adapter.init}`; {what[config.model.adapter.reference]}"
        )
    return rows


def _results(run: Run | Both) -> dict | None:
    """Of this very checkpoint, in the run's folder."""
    for path in (evaluation_of(run.folder, run.step) / "results.json", run.folder / "results.json"):
        results = read_results(path)
        mine = run.identity["checkpoint_hash"]
        if results and results["steps"] == run.step and results.get("checkpoint_hash", mine) == mine:
            return results
    return None


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
