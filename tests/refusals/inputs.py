"""The inputs: each is refused for one reason, or, in a manifest, for one in each row."""

from __future__ import annotations

import json

import torch

from tests.refusals.lists import half_heard, passed_over, prepared_groups
from tests.refusals.making import (
    FRESH,
    HALF,
    NVME,
    WHOLE,
    Input,
    Q,
    bad_groups,
    bad_rows,
    black_mask,
    broken_config,
    broken_key,
    broken_picture,
    broken_reward,
    curated,
    damaged,
    damaged_errors,
    flipped,
    fused_and_apart,
    given,
    lora,
    lora_folder,
    many_bad_rows,
    no_bucket,
    no_hashes,
    no_interpreter,
    no_libaio,
    no_tracker,
    other_start,
    others_errors,
    others_margins,
    prepared_rows,
    remote,
    tensors,
    too_many_spans,
    two_manifests,
)
from tests.refusals.models import checkpoint, deaf_to_masks, of, one_step, own_caption, silent, without
from tests.refusals.parts import (
    adapted,
    attended,
    evaluated,
    noised,
    opened,
    read,
    rewarded,
    shared,
    sized,
    timed,
)

SIDES = ("data.height=64", "data.width=96")  # that LTX takes
RANKED = [{"rank": rank} for rank in range(3)]

INPUTS = {
    # the configuration
    "a key": Input("train", given("train.steps=0")),
    "no such file": Input("train", given(), config="gone.yaml"),
    "a change for the file": Input("train", given(), config="train.steps=3"),
    "an unknown objective": Input("train", given("objective.name=pgdpo")),
    "an unknown option": Input("train", given("objective.bta=3")),
    "an option's range": Input("train", given("objective.beta=-1")),
    "an option's kind": Input("train", given("objective.beta=much")),
    "an option's choice": Input("train", given("objective.safeguard={scope: batch}")),
    "a switch beyond one": Input("train", given("objective={name: pg_dpo, ipr_form: switch, ipr_weight: 2}")),
    "omega without a beta": Input("train", given("objective={name: sft, timestep_weight: snr}")),
    "one point": Input("train", given("objective.timestep_weight=[[0, 1]]")),
    "points that fall": Input("train", given("objective.timestep_weight=[[0.5, 1], [0.2, 0]]")),
    "no safeguard": Input("train", given("objective={name: sft, adaptive_clip: {}}")),
    "a cap without a reference": Input("train", given("objective={name: sft, logit_cap: 8}")),
    "a cap beside a margin": Input("train", given("objective={name: ipo, logit_cap: 8}")),
    "a safeguard's kind": Input("train", given("objective.safeguard=3")),
    "a safeguard's order": Input("train", given("objective.adaptive_clip={low_start: 1, low_end: 0.5}")),
    "the batch": Input("train", given("train.global_batch_groups=5")),
    # rewards
    "a reward's form": Input(rewarded, given("evaluate.reward=motion")),
    "a reward's package": Input(rewarded, given("evaluate.reward=my_rewards:motion")),
    "a reward's import": Input(rewarded, broken_reward),
    "a reward's function": Input(rewarded, given("evaluate.reward=numpy:sise")),
    "a reward that raises": Input(rewarded, given("evaluate.reward=numpy:mean")),
    "a reward's numbers": Input(rewarded, given("evaluate.reward=numpy:isin")),
    "nothing held out": Input(evaluated, given("data.held_out=null"), "note"),
    # where results go
    "a file for the results": Input("train", given("output_dir=config.yaml")),
    "a file for prepared pairs": Input("prepare", given("data.prepared=config.yaml")),
    "a folder that can't be made": Input("train", given("output_dir=/proc/none")),
    # the machine, and the engine
    "a tracker": Input("train", no_tracker),
    "a value for DeepSpeed": Input("train", given("train.deepspeed.communication_data_type=half")),
    "an NVMe folder": Input("train", given(*NVME, "train.nvme_path=/proc/nvme"), "warning"),
    "no libaio": Input("train", no_libaio, "warning"),
    "heads": Input(shared, given("train.sequence_parallel=3")),
    "tokens": Input(
        shared,
        given(FRESH, "train.sequence_parallel=2", "data.num_frames=1", "data.height=8", "data.width=8"),
    ),
    "a backend's name": Input("train", given("model.attention=xfomers")),
    "a backend's operator": Input("train", given("model.attention=xformers"), "warning"),
    "a backend for cogvideox": Input(attended, of("cogvideox 2b", "model.attention=_native_flash")),
    "a backend without masks": Input(
        attended, of("hunyuan_video", "model.attention=_native_flash", "train.micro_batch_groups=2")
    ),
    "a backend that attends to padding": Input(attended, deaf_to_masks),
    "no Triton": Input("train", no_interpreter, "warning"),
    "what is kept": Input(
        "train", given("model.gradient_checkpointing=selective", "model.attention=_native_math")
    ),
    # the adapter
    "no such layer": Input("train", given("model.adapter.target_modules=[to_q,to_z]")),
    "no linear layer": Input("train", given("model.adapter.target_modules=[to_q,'0']")),
    "no LoRA there": Input("train", given("model.adapter.init=nowhere")),
    "two LoRAs": Input("train", lora_folder("a.safetensors", "b.safetensors")),
    "an empty folder": Input("train", lora_folder()),
    "a broken LoRA": Input("train", lora_folder("a.safetensors")),
    "a LoRA twice": Input("train", lora(WHOLE | {f"transformer.{name}": t for name, t in WHOLE.items()})),
    "other tensors": Input("train", lora(WHOLE | {"blocks.0.norm3.diff": torch.ones(2)})),
    "no LoRA": Input("train", lora({"blocks.0.norm3.diff": torch.zeros(2)})),
    "half a LoRA": Input("train", lora(HALF)),
    "two ranks": Input("train", lora(WHOLE | {f"{Q}.lora_A.weight": torch.ones(1, 32)})),
    "another model's": Input("train", lora(WHOLE | {f"{Q}.lora_A.weight": torch.ones(2, 16)})),
    "not finite": Input("train", lora(WHOLE | {f"{Q}.lora_A.weight": torch.full((2, 32), torch.nan)})),
    "alpha 0": Input("train", lora(WHOLE | {f"{Q}.alpha": torch.tensor(0.0)})),
    "metadata": Input("train", lora(WHOLE, metadata={"lora_adapter_metadata": "[1]"})),
    "alpha_pattern": Input(
        "train",
        lora(WHOLE, metadata={"lora_adapter_metadata": json.dumps({"transformer.alpha_pattern": [1]})}),
    ),
    "a rank": Input("train", lora(WHOLE, "model.adapter.rank=1")),
    "a LoRA of more": Input("train", lora(WHOLE, "model.adapter.target_modules=[to_v]")),
    "fused and apart": Input(adapted, fused_and_apart),
    # the model's folder
    "no model there": Input("train", given("model.path=nowhere/here/there")),
    "a checkpoint": Input("train", checkpoint),
    "a broken index": Input(opened, lambda place: broken_config(place, "model_index.json")),
    "another family": Input(opened, of("wan 2.1 t2v", "model.family=ltx")),
    "a folder's revision": Input("train", given("model.revision=v1")),
    "a broken config": Input(opened, lambda place: broken_config(place, "transformer/config.json")),
    "a broken scheduler": Input(
        opened, lambda place: broken_config(place, "scheduler/scheduler_config.json")
    ),
    "no VAE": Input(opened, lambda place: without(place, "vae")),
    "another VAE": Input(opened, of("wan 2.1 t2v", vae={"_class_name": "AutoencoderKL"})),
    "another transformer": Input(
        opened, of("wan 2.1 t2v", transformer={"_class_name": "LTXVideoTransformer3DModel"})
    ),
    "no model_index": Input(opened, lambda place: without(place, "model_index.json")),
    "another pipeline": Input(opened, of("wan 2.1 t2v", index={"_class_name": "WanVACEPipeline"})),
    "two experts": Input(opened, of("wan 2.2 t2v a14b high")),
    "one expert": Input(opened, of("wan 2.1 t2v", "model.expert=low_noise")),
    "an expert missing": Input(
        opened, of("wan 2.1 t2v", "model.expert=low_noise", index={"boundary_ratio": 0.9})
    ),
    "another adapter": Input(
        opened, of("wan 2.2 t2v a14b high", "model.expert=low_noise", "model.other_adapter=nowhere")
    ),
    "one start for both experts": Input(
        opened, of("wan 2.2 t2v a14b high", "model.expert=both", "model.transformer=nowhere")
    ),
    "another task": Input(opened, of("wan 2.1 t2v", "model.task=image_to_video")),
    "an image for the toy": Input(opened, of("wan 2.1 i2v", "model.encoders=toy")),
    "a VAE of another model": Input(opened, of("wan 2.1 t2v", vae={"z_dim": 8})),
    "encoders of another width": Input(opened, of("wan 2.1 t2v", "model.encoders=toy")),
    "sound of another width": Input(opened, of("ltx2", "model.encoders=toy")),
    "a picture for the sounding toy": Input(
        opened, of("ltx2", "model.encoders=toy", "model.task=image_to_video")
    ),
    "control channels": Input(opened, of("wan 2.1 i2v", transformer={"in_channels": 16})),
    "no CLIP": Input(opened, lambda place: without(place, "image_encoder", "wan 2.1 i2v")),
    "one frame": Input(sized, of("wan 2.1 i2v", "data.num_frames=1")),
    "keyframes before 0.9.5": Input(opened, of("ltx", "model.keyframes=[0,-1]")),
    "the given frame alone": Input(sized, of("ltx", "model.keyframes=[0]", "data.num_frames=1", *SIDES)),
    "a keyframe behind the clip": Input(
        sized, of("ltx 0.9.5", "model.keyframes=[9]", "data.num_frames=9", *SIDES)
    ),
    "the last keyframe by its number": Input(
        sized, of("ltx 0.9.5", "model.keyframes=[8]", "data.num_frames=9", *SIDES)
    ),
    "frames": Input(sized, of("wan 2.1 t2v", "data.num_frames=6")),
    "height": Input(sized, of("wan 2.1 t2v", "data.num_frames=5", "data.height=20")),
    "a short rotary table": Input(
        sized, of("wan 2.1 t2v", "data.num_frames=5", transformer={"rope_max_seq_len": 1})
    ),
    "learned positions": Input(
        sized,
        of(
            "cogvideox 2b",
            "data.num_frames=9",
            "data.height=32",
            "data.width=32",
            transformer={
                "use_rotary_positional_embeddings": True,
                "use_learned_positional_embeddings": True,
            },
        ),
    ),
    "CogVideoX's one frame": Input(sized, of("cogvideox 1.5 i2v", "data.num_frames=1")),
    "CogVideoX 1.5's table": Input(
        sized, of("cogvideox 1.5", "data.num_frames=9", "data.height=80", "data.width=96")
    ),
    "the toy's height": Input(sized, given(FRESH, "data.height=18")),
    "CogVideoX's control": Input(opened, of("cogvideox 2b", transformer={"in_channels": 8})),
    "CogVideoX's frames": Input(opened, of("cogvideox 1.5", transformer={"patch_size_t": 4})),
    "CogVideoX's scheduler": Input(opened, of("cogvideox 2b", scheduler={"prediction_type": "epsilon"})),
    "HunyuanVideo's image": Input(
        opened, of("hunyuan_video", transformer={"image_condition_type": "controlnet"})
    ),
    "HunyuanVideo's guidance": Input(opened, of("hunyuan_video i2v 33ch", "model.guidance=6")),
    "HunyuanVideo's one frame": Input(sized, of("hunyuan_video i2v", "data.num_frames=1")),
    "a start without its config": Input("train", other_start(None)),
    "a start of another class": Input("train", other_start({"_class_name": "LTXVideoTransformer3DModel"})),
    "a start of other layers": Input("train", other_start({"num_layers": 3})),
    "a tensor missing": Input(read, tensors(lambda found: found.pop("proj_out.bias"))),
    "a tensor's shape": Input(read, tensors(lambda found: found.update({"proj_out.bias": torch.ones(2)}))),
    "no weights": Input(read, tensors(None)),
    # rows and clips
    "bad rows": Input("prepare", bad_rows),
    "bad groups": Input("prepare", bad_groups),
    "an empty mask": Input("prepare", black_mask),
    "a picture": Input("prepare", broken_picture),
    "no bucket": Input("prepare", no_bucket),
    "too many spans": Input("prepare", too_many_spans),
    "many bad rows": Input("prepare", many_bad_rows),
    "a model's own rate": Input(timed, of("wan 2.2 ti2v 5b t2v")),
    "a rate that the model isn't told": Input(timed, of("ltx", "data.fps=8")),
    "one row of latents": Input(
        sized, of("ltx2", "data.num_frames=9", "data.height=32", "data.width=64", "evaluate.fps=null")
    ),
    "any rate beside sound": Input(timed, of("ltx2", "data.fps=own", "evaluate.fps=null")),
    "parts of another kind": Input(timed, of("ltx2", "objective.parts=3")),
    "an unknown part": Input(timed, of("ltx2", "objective.parts={audoi: 0.3}")),
    "a part's weight": Input(timed, of("ltx2", "objective.parts={audio: -1}")),
    "a form of parts": Input(timed, of("ltx2", "objective.parts={form: outside}")),
    "parts without weight": Input(timed, of("ltx2", "objective.parts={video: 0, audio: 0}")),
    "a rate that the sound hasn't": Input(timed, of("ltx2", "data.fps=12", "evaluate.fps=null")),
    "connectors without registers": Input(
        opened,
        of("ltx2", "evaluate.fps=null", connectors={"audio_connector_num_learnable_registers": None}),
    ),
    "a manifest of which none is left": Input("train", two_manifests),
    "words": Input("prepare", curated(prompt="one two three four five six seven eight nine")),
    "a URL": Input("prepare", remote("memory://refusals/none.mp4")),
    "a large clip": Input("prepare", remote("memory://refusals/large.mp4", most=10)),
    # what the objective and the rules read
    "siblings": Input("train", given("objective={name: d3po}")),
    "inversion": Input("train", given("objective={name: inpo}")),
    "inversion of v": Input(noised, of("cogvideox 2b", "diffusion.inversion_steps=2")),
    "flow_dpo of v": Input(noised, of("cogvideox 2b", "objective.timestep_weight=flow_dpo")),
    "inversion from above": Input(
        noised, of("wan 2.2 t2v a14b high", "model.expert=high_noise", "diffusion.inversion_steps=2")
    ),
    "a reference that stands still": Input("train", given("objective={name: linear_dpo}")),
    "hard labels": Input(
        "train",
        prepared_rows("objective={name: adpo}", first={"probability": 1.0}, second={"probability": 0.0}),
    ),
    "pairs of whole groups": Input("train", given("objective={name: lpo, pairing: all}")),
    "masks": Input("train", given("objective={name: local_dpo}")),
    "groups for labels of segments": Input(
        "train", prepared_groups("objective={name: dense_dpo}", samples=RANKED)
    ),
    "groups of one for pairs": Input("train", prepared_groups(samples=RANKED[:1])),
    "groups without labels": Input("train", prepared_groups("objective={name: kto}", samples=RANKED)),
    "groups in no order": Input("train", prepared_groups("objective={name: lpo}", samples=[{}] * 3)),
    "a safeguard on groups": Input("train", prepared_groups("objective.safeguard={}", samples=RANKED)),
    "a caption that was passed over": Input("train", passed_over),
    "sound in some rows": Input("train", half_heard),
    "sound alone that is not there": Input(
        "train", silent("objective.parts={video: 0}", heard=(False, False))
    ),
    "sound that ranks compare": Input(
        "train", silent("objective={name: kto, parts: {form: separate}}", heard=(True, False))
    ),
    "a caption beside a picture": Input("prepare", own_caption),
    "a column": Input("train", given("objective={name: dense_dpo}")),
    "a column's shape": Input(
        "train",
        prepared_rows(
            "objective={name: dense_dpo}", first={"segment_labels": [1, 0]}, second={"segment_labels": [1]}
        ),
    ),
    "segments": Input("train", given("data.segments=9")),
    "two numbers of segments": Input(
        "train",
        prepared_rows(
            "objective={name: dense_dpo}",
            "data.segments=3",
            first={"segment_labels": [1, 0]},
            second={"segment_labels": [1, 0]},
        ),
    ),
    "none is left": Input("train", given("data.select=[{by: chosen_score, score: total, least: 2}]")),
    "no score": Input("train", given("data.select=[{by: margin, score: beauty}]")),
    "no hashes": Input("train", lambda place: [place.own_pairs(no_hashes), "data.select=[{by: duplicates}]"]),
    "no quality": Input("train", given("data.select=[{by: fifa, score: total, quality: text_quality}]")),
    "no source": Input("train", given("data.select=[{by: source, sources: [elsewhere]}]")),
    "no margins": Input("train", given("data.order={by: implicit_reward, file: gone.json}")),
    "others' margins": Input("train", others_margins),
    # prepared pairs
    "one step": Input("train", one_step),
    "a negative prompt": Input("train", given("evaluate.every=1", "evaluate.negative_prompt=a red square")),
    "no JSON": Input("train", damaged(lambda folder: (folder / "index.json").write_text("{"))),
    "another format": Input("train", damaged(lambda folder: (folder / "index.json").write_text("{}"))),
    "other sizes": Input("train", given("data.height=32")),
    "a shard's bytes": Input("train", damaged(flipped)),
    "a shard for the reference": Input("reference", damaged(flipped)),
    "others' errors": Input("train", others_errors, "warning"),
    "a broken key": Input("train", broken_key, "warning"),
    "damaged errors": Input("train", damaged_errors, "warning"),
    "errors of the reference": Input("train", given("train.reference=cached"), "warning"),
}
