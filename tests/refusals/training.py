"""The part of `table.py` that is about pgdpo.training."""

from __future__ import annotations

from tests.refusals.entries import By, Why

# fmt: off
TRAINING: dict[str, dict[str, dict[str, By | Why]]] = {
    "ranks.agreement": {"shared": {"InputError(refused)": Why.PASSED_ON}},
    "engine.attention": {
        "_try_attention": {
            "diffusers knows": By("a backend's name"),
            "diffusers calls torch's attention": By("a backend for cogvideox"),
            "it takes no mask": By("a backend without masks"),
            "use `native`, or another of": By("a backend's operator"),
            "it attends to padding": By("a backend that attends to padding"),
        },
    },
    "checkpoints.checkpoint": {
        "Checkpoints.newest": {"damaged_step(path, damage)": Why.RUN},
        "Checkpoints._give_up": {"error": Why.RUN},
        "check_shapes": {"it is a checkpoint of another model": Why.RUN},
        "_check_seen": {"written by another rank and not to": Why.RUN},
    },
    "engine.deterministic": {"check_objective": {"from batch to batch, which depends": Why.RUN}},
    "engine.engine": {
        "check_offload": {
            "name a folder on a local NVMe drive": By("an NVMe folder"),
            "no libaio to link with": By("no libaio"),
        },
        "build_operators": {
            "_no_async_io(keys[0], ' '.join(str(error).split())[:160])": Why.MACHINE,
            "that takes a GPU and CUDA's compiler": Why.MACHINE,
        },
        "check_deepspeed": {"mend the value, or leave the key out": By("a value for DeepSpeed")},
    },
    "sampling.clips": {
        "how_sampled": {
            "which encodes this alone": By("a negative prompt"),
            "of one level gives no number": By("one step"),
        }
    },
    "sampling.share": {"Parts.make": {"system that all nodes share; name one with --out": Why.MACHINE}},
    "checkpoints.export": {
        "_check_target": {"and no earlier export of this run": Why.ANOTHER},
        "_check_formats": {
            "allowed are": Why.ANOTHER,
            "but all weights were trained (model.adapter": Why.ANOTHER,
            "its ComfyUI wrappers read what `--format": Why.ANOTHER,
        },
        "check_trained": {"its weights are others than": Why.ANOTHER},
    },
    "guards.bad_steps": {
        "Guard.settle": {"nothing was updated)": Why.RUN},
        "Guard.raise_end": {"self._end": Why.RUN},
    },
    "training.saves": {
        "Saves.finished": {"no room for the last checkpoint": Why.RUN},
        "Saves.begin": {
            "holds checkpoints of an earlier run": Why.RUN,
            "none of its checkpoints is whole": Why.RUN,
            "holds a run of both experts": Why.RUN,
        },
    },
    "engine.memory": {
        "save_memory": {"set it to `none`": Why.CALLER},
        "check_selective": {"model.gradient_checkpointing is `selective`": By("what is kept")},
    },
    "training.held_out.held_out": {"HeldOut._start": {"not there, or of other held-out": Why.RUN}},
    "training.steering.fitting_beta": {"fitting_beta": {"the gradient of the margin is nothing": Why.RUN}},
    "training.task.checks": {
        "_check_groups": {
            "which is of pairs, and": By("groups for labels of segments"),
            "has one; leave it out, or take": By("groups of one for pairs", says=("leave it out, or take `kto`",)),
            "of every sample: group": By("groups without labels", says=("`label`",)),
            "orders the samples of a group": By("groups in no order", says=("`advantage`",)),
        },
        "check_noise": {
            "prepared pairs hold none. Call it": By("siblings"),
            "set diffusion.inversion_steps (10": By("inversion"),
        },
        "check_streams": {
            "nothing is learnt of such rows": By("sound alone that is not there"),
            "compares the samples of all ranks, of each part": By("sound that ranks compare"),
        },
        "check_rows": {"InputError(f\"{data.folder": By("hard labels", says=("lives by how sure a label is",))},
        "check_reference": {"set train.reference to `ema`": By("a reference that stands still")},
        "_check_flow_dpo": {"(1 - sigma)^2 is for flow matching": By("flow_dpo of v")},
        "_check_inversion": {
            "inversion is written for flow matching": By("inversion of v"),
            "inversion starts from the clip, and": By("inversion from above"),
        },
        "_check_masks": {"name each pair's `mask` in the manifest": By("masks")},
        "_check_column": {
            "in every row: row": By("a column"),
            "expected a {}": Why.EARLIER,
            "expected one shape in all rows": By("a column's shape", says=("[1]", "[1, 0]")),
        },
        "divide_frames": {
            "entries a row: both must be one number": By("two numbers of segments"),
            "segments, and the latents have": By("segments"),
        },
    },
    "engine.parallel": {
        "arrange_ranks": {"rank(s) run: it must divide them; start": Why.MACHINE},
        "check_sequence_parallel": {
            "attention heads of this model": By("heads"),
            "tokens (data.num_frames, height and": By("tokens"),
        },
    },
    "engine.policy": {
        "fuse": {
            "model.kernels is `triton`: Triton needs": By("no Triton"),
            "model.kernels is `triton`: {}; use `auto` or `eager`": Why.CALLER,
        },
    },
    "data.preparing.sounds": {"tracks_of": {"one_sided(clips, heard": Why.CLIP}},
    "video.listen": {
        "read_sound": {"has no sound track": Why.CLIP, "holds no samples": Why.CLIP},
        "_check_end": {"its sound ends after": Why.CLIP},
        "_layout": {"says not where they stand": Why.CLIP},
    },
    "video.track": {
        "probe_track": {"holds no samples": Why.CLIP},
        "pieces": {"is damaged": Why.CLIP, "changes its rate or channels": Why.CLIP},
        "opened": {"does not decode": Why.CLIP},
    },
    "training.opening": {
        "_refuse_stale": {"str(compared)": By("other sizes", says=("`sizes` is [[4, 16, 16]]",))},
        "_check_streams": {"leave these rows out, set": By("sound in some rows", says=("rows have no sound",))},
    },
    "checkpoints.identity": {"check_init": {"it is another LoRA than the run started": Why.RUN}},
    "checkpoints.published": {
        "find_checkpoint": {"damaged_step(found, damage)": Why.RUN},
        "at_step": {"train.keep_checkpoints and train.keep_every": Why.ANOTHER},
        "read_state": {"fall back to an earlier one": Why.RUN, "expected a JSON object": Why.RUN},
        "report_damage": {"leave out --no-fallback to go on": Why.RUN},
    },
    "training.trainer": {"Start.__init__": {"and a Trainer trains one": Why.CALLER}},
    "checkpoints.resume": {"refuse_changes": {"it would no longer be one run; change": Why.RUN}},
    "checkpoints.shards": {"_named": {"nothing else is read; fall back": Why.RUN}},
    "guards.signals": {"StopSignals._leave_share": {"_Left": Why.RUN}},
    "training.trackers": {"check_trackers": {"it is not installed: pip install": By("a tracker")}},
    "engine.zero.load": {
        "_Safetensors.__init__": {
            "no tensor `": By("a tensor missing"),
            "`{}` is {}, the transformer's": By("a tensor's shape", says=("proj_out.bias`", "is (2,)")),
        },
        "_files_by_name": {"nor its index: ZeRO-3 reads safetensors": By("no weights")},
    },
}
# fmt: on
