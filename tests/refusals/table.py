"""For every raise that `prepare`, `train`, `evaluate` or `reference` can come to: an input on which `check` says the
same, or why it cannot.

TABLE[module][function][a part of its message]: `By` an input of `inputs.py`, or `Why` not. `$` stands for the message's
end, `{}` for what is put in. `tests/refusals/test_refusals.py` says what to add where a raise is new.
"""

from __future__ import annotations

from tests.refusals.entries import By, Why
from tests.refusals.training import TRAINING

# fmt: off
TABLE: dict[str, dict[str, dict[str, By | Why]]] = {
    "config.families": {
        "family_of": {"no model of a family that trains": By("another pipeline")},
        "check_family": {"which is of `": By("another family")},
    },
    "files.pipeline": {
        "pipeline_in": {"model.path is": By("no model there", "no model_index", "a checkpoint")},
        "_class_in": {"is to name a class": By("a broken index")},
        "_fetched": {"a network, set model.family": Why.MACHINE},
    },
    "config.read": {
        "load_study": {"names folders: letters, digits": Why.ANOTHER},
        "find_config": {
            "stands where the configuration file": By("a change for the file"),
            "give a path, or one that ships": By("no such file"),
        },
    },
    "data.bad": {
        "check_bad": {
            "InputError('\\n'.join([what, *reasons": Why.PASSED_ON,
            "InputError('\\n'.join([*reasons, *more]))": By("a shard's bytes", says=("its SHA-256 is",)),
        },
    },
    "data.clips": {
        "probe_pair": {"{odd.what}: {odd.mend}": By("bad rows", "bad groups", says=("width is 32 in",))},
        "Sampling.first": {"take fewer segments, fewer frames": By("too many spans")},
        "bucket_of": {"add a bucket, or leave the row out": By("no bucket")},
        "check_clip": {"too_short(info": By("bad rows", "bad groups", says=("the clip holds 3 frames at 8",))},
        "clip_identity": {"the SHA-256 of": By("bad rows", "bad groups", says=("SHA-256", "000000000000"))},
        "_picture": {"{error}, {mend}": By("a picture", says=("cannot be read as a picture",))},
        "check_mask": {"a mask has the size of its": By("bad rows")},
        "named": {"titled(name, sides, side)": Why.PASSED_ON},
    },
    "data.curation.order": {
        "read_margins": {"cannot be read": By("no margins")},
        "_implicit": {
            "write it anew with `pgdpo curate CONFIG": By("others' margins"),
        },
    },
    "data.curation.select": {
        "select": {"data.select: after the rule": By("none is left")},
        "_scores": {"name a score that all rows have, or": By("no score")},
        "_hash": {"data.select `duplicates` reads the": By("no hashes")},
        "_numbers": {"data.select `fifa` reads the column": By("no quality", says=("text_quality",))},
        "_source": {"data.select `source` names": By("no source", says=("names elsewhere: no row has a `source`",))},
    },
    "files.atomic": {"hold": {"another command is at work there": Why.RUN}},
    "files.writable": {
        "check_writable": {
            "a file: name a folder for the results": By("a file for the results", "a file for prepared pairs"),
            "cannot be written (": By("a folder that can't be made"),
        },
    },
    "files.locations": {
        "_copy": {"bytes: no clip to train on is that": By("a large clip")},
        "fetch": {"check the URL and your access, or": By("a URL")},
    },
    "data.masks": {
        "read_mask": {"nothing in it is white, so the region": By("an empty mask"), "'mask')}: {error}": Why.PASSED_ON},
    },
    "data.visits.mixture": {
        "check_left": {"is left to train on, and its share is": By("a manifest of which none is left")}
    },
    "data.visits.batches": {"check_batches": {"it must be a multiple of micro_batch_groups": By("the batch")}},
    "data.preparing.encode": {"_Making._refuse": {"error$": Why.PASSED_ON}},
    "data.prepared": {
        "PreparedPairs.__init__": {"damaged_files": By("a shard for the reference", says=("its SHA-256 is",))},
        "PreparedPairs._check_captions": {"was not embedded: an earlier version": By("a caption that was passed over")},
        "PreparedPairs.__getitem__": {"and no other pair of its size can": Why.RUN},
        "PreparedPairs._checked": {
            "InputError(f'{what}: {wrong}')": Why.RUN,
            "cannot be read": Why.RUN,
            "its bytes have another SHA-256 than": Why.RUN,
        },
        "PreparedPairs.require": {"run `pgdpo prepare` with it again": Why.EARLIER},
    },
    "data.shards": {
        "read_index": {
            "not there: run `pgdpo prepare` with": Why.STEP,
            "not JSON": By("no JSON"),
            "cannot be read": Why.MACHINE,
            "run `pgdpo prepare` again: it keeps": By("another format"),
        },
    },
    "ranks.joined": {
        "Ranks.gather": {"another rank has ended: its message": Why.RUN},
        "Ranks.main_first": {"InputError(refused)": Why.PASSED_ON},
    },
    "data.preparing.prepare": {"_refuse_captions": {"leave it out": By("a caption beside a picture")}},
    "data.preparing.room": {"check_room": {"too little. Make room, set output_dir": Why.MACHINE}},
    "files.tables": {"writer": {"a manifest is written as": Why.ANOTHER}},
    "video.info": {"VideoInfo.check_rate": {"or have frames repeated (data.upsample)": By("bad rows")}},
    "video.picture": {
        "PictureSource._frames": {"an animation whose frames have no": Why.CLIP},
        "_opened.__enter__": {"self._refused(error)": By("bad rows", says=("cannot be read as a picture",))},
        "_opened.__exit__": {"self._refused(error)": By("bad rows", says=("cannot be read as a picture",))},
    },
    "video.read": {
        "read_frames": {"once decoded: cut the clip": Why.CLIP},
        "_shown": {"its frames cannot be shown in RGB": Why.CLIP},
        "_numbered": {"_lost(info, number)": Why.CLIP},
        "read_video": {"too_short(info": Why.CALLER},
        "_look": {"empty(path)": Why.CLIP, "is turned by no multiple of 90": Why.CLIP},
        "_rate": {"times do not go forward: re-encode it": Why.CLIP},
        "_light": {"convert the clip to BT.709, PQ or HLG": By("bad rows")},
        "_check_alike": {
            "the frame size changes inside the": Why.CLIP,
            "its colours change inside": Why.CLIP,
            "that it is turned changes": Why.CLIP,
        },
    },
    "video.source": {
        "open_source": {"no such file: correct the path or": Why.CLIP},
        "ContainerSource._open": {
            "check that it plays, fetch it again": By("bad rows"),
            "holds no video stream: name a file": By("bad rows"),
            "its index reaches to byte": By("bad rows"),
        },
        "ContainerSource._certain_rate": {"its frames have no times": Why.CLIP},
        "ContainerSource._packets": {
            "its frames cannot be counted": Why.CLIP,
            "empty(self._path)": By("bad rows", says=("holds no frames",)),
        },
        "ContainerSource._decoded": {
            "is damaged": Why.CLIP,
            "does not decode": Why.CLIP,
            "frames and it holds": Why.CLIP,
            "empty(self._path)": Why.CLIP,
        },
        "check_side": {"pixels a side are read: check the file": By("bad rows")},
    },
    "evaluation.errors": {"Errors.__init__": {"all held-out rows are single clips": Why.ANOTHER}},
    "evaluation.evaluate": {
        "evaluate": {"NO_HELD_OUT": By("nothing held out", says=("data.held_out is empty: name a manifest",))},
        "check_results": {"it holds results of the run": Why.ANOTHER},
    },
    "evaluation.experts": {
        "evaluate_both": {"NO_HELD_OUT": Why.ANOTHER}
    },
    "report.compare": {
        "_open": {"are told apart on one page": Why.ANOTHER},
        "_read": {"such as `pgdpo runs` lists": Why.ANOTHER},
        "_names": {"name each run once": Why.ANOTHER},
    },
    "report.budget": {"fit": {"which samples it, or restore the file": Why.RUN}},
    "report.preview": {"write_preview": {"was prepared anew since, from other": Why.RUN}},
    "report.report": {
        "_read": {
            "not there: run `pgdpo report` with": Why.ANOTHER,
            "run `pgdpo evaluate` again, or restore": Why.ANOTHER,
        },
    },
    "evaluation.rewards": {
        "open_reward": {
            "expected `toy` or `package.module:function": By("a reward's form"),
            "pip install it (an editable install": By("a reward's package"),
            "mend the module, or name another": By("a reward's import"),
            "has no function": By("a reward's function"),
        },
        "_called": {"mend the function, or name another": By("a reward that raises")},
        "_numbers": {"expected a finite number, or a dict": By("a reward's numbers")},
    },
    "models.adapters.adapter": {"add_adapter": {"model.adapter.target_modules is": Why.EARLIER}},
    "models.families.cogvideox": {
        "CogVideoX.__init__": {
            "CogVideoX 1.5 joins": By("CogVideoX's frames"),
            "CogVideoX was trained with 'v_prediction'": By("CogVideoX's scheduler"),
        },
        "CogVideoX._choose_task": {"what trains is text-to-video": By("CogVideoX's control")},
        "CogVideoX.check_size": {"an image-to-video model is given that frame": By("CogVideoX's one frame")},
        "CogVideoX.check_positions": {
            "this transformer has learned positions": By("learned positions"),
            "rotary table ends at": By("CogVideoX 1.5's table"),
        },
    },
    "models.adapters.comfyui": {"_original": {"has no name in ComfyUI: leave it": Why.ANOTHER}},
    "models.encoders.pipeline": {
        "check_multiples": {"this VAE takes multiples of": By("height"), "data.num_frames is": By("frames")},
    },
    "models.family": {
        "Family.check_toy": {
            "model.encoders is 'toy': its": By("encoders of another width", "sound of another width")
        },
        "Family.check_fps": {"most of its family at": By("a model's own rate")},
        "Family._resolve": {"a folder has no revisions": By("a folder's revision")},
        "Family.load_scheduler": {"its scheduler cannot be read": By("a broken scheduler")},
        "Family.load_part": {
            "the weights in {} do not load ({}): copy the folder whole": Why.WEIGHTS,
            "or set model.random_init": Why.WEIGHTS,
        },
    },
    "models.folder": {
        "check_parts": {"copy it whole, or give its hub id": By("no VAE"), "its vae is a": By("another VAE")},
        "read_architecture": {
            "give a local diffusers folder, or": By("a broken config"),
            "its transformer is a": By("another transformer"),
        },
    },
    "models.weights.hub": {
        "_refused": {"folder, or a hub id and a revision": Why.MACHINE},
        "_told_to_all": {"the main rank has ended": Why.RUN},
        "_wait": {"store.get": Why.PASSED_ON},
    },
    "models.families.hunyuan_video": {
        "HunyuanVideo._check_parts": {"its transformer's image_condition_type is": By("HunyuanVideo's image")},
        "HunyuanVideo._choose_guidance": {"has no input for it": By("HunyuanVideo's guidance")},
        "HunyuanVideo.check_size": {"an image-to-video model is given that frame": By("HunyuanVideo's one frame")},
    },
    "models.adapters.lora_file": {
        "find_file": {
            "it is not there: name a LoRA's safetensors": By("no LoRA there"),
            "name the one that is meant": By("two LoRAs"),
            "name a LoRA's file, or an export's": By("an empty folder"),
        },
        "_Reader.__init__": {"is no whole safetensors file": By("a broken LoRA")},
        "_Reader.updates": {
            "it holds two LoRAs of": By("a LoRA twice"),
            "self._strange": By("other tensors", says=("it also holds",)),
            "no LoRA is in it (no tensor `....lora_A.weight`)": By("no LoRA"),
            "twice, also as a part of": By("fused and apart"),
        },
        "_Reader._of_layer": {
            "the file is cut off, or no LoRA": By("half a LoRA"),
            "which are no matrices of one rank": By("two ranks"),
            "it is a LoRA of another model": By("another model's"),
            "holds numbers that are not finite": By("not finite"),
        },
        "_Reader._scale": {"a number other than 0 is needed": By("alpha 0")},
        "_Reader._own_metadata": {
            "{} its {} is no JSON object": By("metadata", says=("is no JSON object",)),
            "alpha_pattern in its": By("alpha_pattern"),
        },
        "_check_fits": {
            "or more, and model.adapter.alpha as": By("a rank"),
            "model.adapter.target_modules is": By("a LoRA of more"),
        },
    },
    "models.weights.start": {
        "check_start": {
            "config.json nor config.json is there": By("a start without its config"),
            "model.family `{}` needs a": By("a start of another class", says=("model.family `wan` needs a",)),
            "take the model that it was trained": By("a start of other layers"),
        },
    },
    "models.adapters.targets": {
        "check_targets": {
            "no linear layer of this model is": By("no such layer"),
            "and a LoRA is for linear layers": By("no linear layer"),
        },
    },
    "toy.encoders": {
        "ToyEncoders.check_size": {"allowed are multiples of": By("the toy's height", says=("4: 16 or 20",))},
        "_words": {"the toy's encoder takes": By("words")},
    },
    "models.experts": {
        "has_experts": {
            "set model.expert to both": By("two experts"),
            "but it has one transformer for all": By("one expert"),
        },
        "_check": {
            "its boundary_ratio asks for two experts": By("an expert missing"),
            "merged export of both": By("one start for both experts"),
            "name an export's folder": By("another adapter"),
        },
    },
    "models.families.ltx": {
        "LTX.check_fps": {"and the model is told": By("a rate that the model isn't told")},
        "LTX._choose_pictures": {"its scheduler shifts by the number of": By("keyframes before 0.9.5")},
        "LTX.check_size": {
            "data.num_frames is 1: the model is given": By("the given frame alone"),
            "and data.num_frames is {}: allowed are": By(
                "a keyframe behind the clip", "the last keyframe by its number", says=("allowed are 0 to 7",)
            ),
        },
    },
    "models.families.ltx2": {
        "LTX2.check_size": {"this VAE decodes clips from": By("one row of latents")},
        "LTX2.__init__": {"the toy's encoders encode no pictures": By("a picture for the sounding toy")},
        "LTX2.check_fps": {"and the model is told": By("any rate beside sound", "a rate that the sound hasn't")},
    },
    "models.encoders.ltx2": {
        "check_connectors": {"and what trains are models": By("connectors without registers")},
    },
    "models.families.wan": {
        "Wan._choose_task": {
            "but this model is for": By("another task"),
            "it starts from an image, which the": By("an image for the toy"),
            "what trains is image-to-video from": By("control channels"),
        },
        "Wan._check_widths": {"its VAE's latents have": By("a VAE of another model")},
        "Wan._check_clip": {"its transformer attends to an image": By("no CLIP")},
        "Wan.check_positions": {"this transformer's rotary table has": By("a short rotary table")},
        "Wan.check_size": {"data.num_frames is 1: an image-to-video": By("one frame")},
    },
    "objectives.batch": {"Batch._given": {"PairInfo.": Why.CALLER}},
    "objectives.modifiers": {
        "check": {
            "is for objectives that compare pairs": By("pairs of whole groups"),
            "needs an objective with `beta` and": By("no safeguard"),
            "a factor of β at each noise level": By("omega without a beta"),
            "needs an objective with a reference": By("a cap without a reference"),
            "ipo regresses to a margin of its own": By("a cap beside a margin"),
            "allowed: a mapping of": By("a safeguard's kind"),
            "allowed: ≤": By("a safeguard's order"),
        },
    },
    "objectives.formulas.lists": {"adpo": {"set target to": Why.EARLIER}},
    "objectives.objective": {
        "Objective.check_groups": {
            "part the others first": Why.CALLER,
            "and these are groups of one": Why.EARLIER,
            "looks at the two samples of a pair": By("a safeguard on groups"),
        },
        "Objective.__call__": {"of which several parts have no sum": Why.EARLIER},
        "_weight": {"PairInfo.weight has shape": Why.CALLER},
        "get_spec": {"unknown objective": By("an unknown objective")},
        "check_options": {"{where}: {wrong}": By("a switch beyond one", says=("`ipr_form` switch; allowed: ≤ 1",))},
        "_check_present": {
            ".{} is missing": Why.CALLER,
            "needs the reference's errors in PairInfo.masked": Why.CALLER,
        },
        "_check_pairs": {"and the data doesn't hold it": Why.CALLER},
    },
    "objectives.parts": {
        "Parts.read": {
            "allowed: a mapping of": By("parts of another kind"),
            "unknown part": By("an unknown part"),
            "allowed: a number ≥ 0": By("a part's weight"),
            "form is": By("a form of parts"),
            "all weights are 0": By("parts without weight"),
        },
    },
    "objectives.spec": {
        "Option.check": {
            "allowed: {}{}": By("an option's choice", "an option's kind", says=("; allowed: ",)),
            "allowed: {}$": By("an option's range", says=("is -1; allowed: > 0",)),
        },
        "check_table": {
            "two points or more": By("one point"),
            "entry {} is": By("points that fall", says=("entry 2 is [0.2, 0]", "sigma above entry 1's 0.5")),
        },
        "check_known": {"has no option": By("an unknown option")},
    },
    "planning.hardware": {
        "machine": {
            "it is the number over all nodes and": Why.ANOTHER,
            "whose rate is not known": Why.ANOTHER,
        },
    },
    "planning.plan": {"Planner.plan": {"train.sequence_parallel is": Why.ANOTHER}},
    "planning.start": {"refuse_too_large": {"to start all the same (compiled blocks": Why.MACHINE}},
    "messages.problems": {
        "raise_errors": {
            "InputError('\\n'.join(map(str, errors)))": By("a key", says=("`train.steps` is 0",)),
            "InputError(_grouped(errors, beside))": By("many bad rows", says=("`weight` is -1",)),
        }
    },
    "checkpoints.record": {
        "read_record": {"its state.json is damaged": Why.RUN, "bring it back, or begin anew": Why.RUN},
        "_validated": {"says nothing of the configuration": Why.RUN},
    },
    "reference.cached": {
        "CachedErrors.__init__": {"are not computed yet": By("errors of the reference")},
        "CachedErrors.comparison": {"are of other noise levels than this": Why.RUN},
    },
    "reference.moving": {"Moving.load_state": {"is not there): it was written with": Why.RUN}},
    "reference.store": {
        "_read_shard": {"its SHA-256 is not its name: the": By("damaged errors")},
        "open_rows": {"train.reference is `cached`, but the": By("others' errors")},
        "_read_key": {"cannot be read": By("a broken key")},
    },
    "checkpoints.runs": {
        "_open_both": {"not trained yet: go on": Why.ANOTHER},
        "open_run": {"_no_run(folder)": Why.ANOTHER, "holds no valid checkpoint: go on": Why.ANOTHER},
        "step_named": {"expected a step such as 100, or `best`": Why.ANOTHER, "no best step": Why.ANOTHER},
        "open_steps": {"expected `all`, or steps such as": Why.ANOTHER},
        "run_config": {"_no_run(given.loaded.run_dir)": Why.ANOTHER},
        "resumed_config": {"go back with one of them by": Why.ANOTHER},
        "_of_folder": {"no run": Why.ANOTHER, "one of them names the run": Why.ANOTHER},
        "_as_trained": {"_contradiction(given, {key: differing[key]": Why.ANOTHER},
    },
    **TRAINING,
}
# fmt: on
