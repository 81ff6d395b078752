"""Six steps of SimpleTuner's Flow-DPO on a tiny Wan: `python step.py FOLDER`, with SimpleTuner on the path."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from simpletuner.helpers.distillation.factory import DistillerFactory
from simpletuner.helpers.models.wan.model import Wan

work = Path(sys.argv[1])
torch.manual_seed(0)
Wan.MODEL_CLASS(
    num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=16, ffn_dim=32, num_layers=2,
    cross_attn_norm=True,
).save_pretrained(work / "transformer")  # fmt: skip
FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(work / "scheduler")
unset = (
    "pretrained_transformer_subfolder pretrained_vae_model_name_or_path vae_path revision variant controlnet "
    "tread_config gradient_checkpointing_interval fuse_qkv_projections lora_alpha flux_fast_schedule "
    "flow_use_beta_schedule flow_use_uniform_schedule flow_schedule_auto_shift prediction_type "
    "wan_trained_stage offset_noise framerate aspect_bucket_alignment disable_segmented_timestep_sampling "
    "input_perturbation_steps validation_num_inference_steps"
)
config = SimpleNamespace(  # what Wan reads: its own parser imports every model that there is
    **dict.fromkeys(unset.split()),
    model_family="wan",
    model_flavour="t2v-480p-1.3b-2.1",
    model_type="lora",
    lora_type="standard",
    lora_rank=4,
    lora_dropout=0.0,
    lora_initialisation_style=True,
    pretrained_model_name_or_path=str(work),
    pretrained_transformer_model_name_or_path=str(work / "transformer"),
    weight_dtype=torch.float32,
    base_model_precision="no_change",
    flow_matching=True,
    flow_schedule_shift=3.0,
    flow_sigmoid_scale=1.0,
    input_perturbation=0,
    loss_type="l2",
)
accelerator = Accelerator(cpu=not torch.cuda.is_available())
model = Wan(config, accelerator)
model.load_model()
model.model.requires_grad_(False)
model.add_lora_adapter()
distiller = DistillerFactory.create_distiller(
    "flow_dpo", teacher_model=model, noise_scheduler=None, config=vars(config), model_type="lora"
)

parameters = [x for x in model.model.parameters() if x.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)
latents, text = torch.randn(2, 2, 16, 2, 4, 4), torch.randn(2, 6, 32)
for step in range(6):
    batch = {
        "latent_batch": latents[0],
        "conditioning_latents": latents[1],
        "conditioning_type": "reference_strict",
        "prompt_embeds": text,
    }
    batch = model.prepare_batch(batch, {"global_step": step})
    prediction = model.model_predict(batch)
    loss, _ = distiller.compute_distill_loss(batch, prediction, model.loss(batch, prediction))
    print(f"step {step}: loss {loss.item()!r}", flush=True)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
