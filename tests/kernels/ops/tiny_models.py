"""Real diffusers transformers of every family, a few thousand parameters each, and inputs for them."""

from __future__ import annotations

from functools import partial
from unittest import mock

import tiny_audio
import tiny_hunyuan_kin
import tiny_image
import tiny_mmdit
import tiny_wan_kin
import torch
import torch.nn.functional as F
from op_oracle import DEVICE
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map


def new(name: str, config: dict) -> torch.nn.Module:
    """Imported here, so that a test module can be left out by name where diffusers is not installed."""
    import diffusers

    return getattr(diffusers, name)(**config)


def wan(image=False, per_token=False, **config):
    config = {
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
    } | config
    config |= {"text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 16}
    if image:
        config |= {"image_dim": 8, "added_kv_proj_dim": 48}
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.rand(2, 8) * 1000 if per_token else torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(
            2, 512 if image else 5, 8
        ),  # diffusers cuts the image off by 512
    }
    if image:
        inputs["encoder_hidden_states_image"] = torch.randn(2, 3, 8)
    return new("WanTransformer3DModel", config), inputs


def hunyuan_video(image=None):
    config = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1)
    config |= dict(num_single_layers=1, num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8)
    config |= dict(rope_axes_dim=(4, 6, 6), image_condition_type=image)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([1000.0, 6000.0]),
    }
    return new("HunyuanVideoTransformer3DModel", config), inputs


def cogvideox(rotary=True):
    """With the rotation as 5b has it, without as 2b."""
    config = dict(num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1)
    config |= dict(time_embed_dim=8, text_embed_dim=8, sample_width=4, sample_height=4, sample_frames=5)
    config |= dict(max_text_seq_length=3, use_rotary_positional_embeddings=rotary)
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
    }
    if rotary:
        angles = torch.rand(8, 8).repeat_interleave(2, -1)
        inputs["image_rotary_emb"] = (angles.cos().to(DEVICE), angles.sin().to(DEVICE))
    return new("CogVideoXTransformer3DModel", config), inputs


def ltx(per_token=False):
    config = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1)
    config |= dict(cross_attention_dim=16, caption_channels=8)
    inputs = {
        "hidden_states": torch.randn(2, 8, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.rand(2, 8) * 1000 if per_token else torch.tensor([100.0, 700.0]),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        **{"num_frames": 2, "height": 2, "width": 2},
    }
    return new("LTXVideoTransformer3DModel", config), inputs


FAMILIES = {"wan": wan, "hunyuan_video": hunyuan_video, "cogvideox": cogvideox, "ltx": ltx}
# Classes that share blocks with them or have such blocks, by name: each gives a configuration and inputs.
KIN = (
    tiny_wan_kin.MODELS | tiny_hunyuan_kin.MODELS | tiny_mmdit.MODELS | tiny_image.MODELS | tiny_audio.MODELS
)


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **options):
    """A model as `from_pretrained(torch_dtype=dtype)` leaves it, and its inputs; of a family or a class of its kin."""
    torch.manual_seed(seed)
    if family in KIN:
        config, inputs = KIN[family](**options)
        with mock.patch("torch.empty", torch.zeros):  # Nucleus' experts are left as the memory was
            model = new(family.split(",")[0], config)  # after a comma, what of the class
    else:
        model, inputs = FAMILIES[family](**options)
    for parameter in model.parameters():  # not the ones, zeros and tiny numbers of an initialization
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(DEVICE, dtype).eval()  # DiT drops classes at random in training
    for name, module in model.named_modules():
        if name.split(".")[-1] in (model._keep_in_fp32_modules or []):
            module.float()
    for name, parameter in model.named_parameters():
        if name.split(".")[-1] in (model._keep_in_fp32_modules or []):
            parameter.data = parameter.data.float()
    return model, {key: tree_map(partial(cast, key, dtype), value) for key, value in inputs.items()}


def cast(key, dtype, value):
    if not isinstance(value, torch.Tensor):
        return value
    # A timestep of bf16 stands for the model's own dtype, which some want.
    keep = key in ("timestep", "guidance") and value.dtype != torch.bfloat16 or not value.is_floating_point()
    return value.to(DEVICE, value.dtype if keep else dtype)


def latents_of(inputs) -> str:
    return next(key for key in ("hidden_states", "x", "vision_tokens") if key in inputs)


def all_to_all(query, key, value, **kwargs) -> torch.Tensor:
    """In place of flex attention, which has no backward on a CPU."""
    return F.scaled_dot_product_attention(query, key, value)


def step(model, inputs) -> list[torch.Tensor]:
    """The output, several as one tensor, and the gradients of the latents, one or several, and of every parameter."""
    key = latents_of(inputs)
    latents = tree_map(lambda x: x.detach().requires_grad_(), inputs[key])
    with (
        mock.patch("torch.nn.attention.flex_attention.flex_attention", all_to_all),
        sdpa_kernel(SDPBackend.MATH),  # the backward pass of others adds up in any order on a GPU
    ):
        outputs = model(**inputs | {key: latents}, return_dict=False)
        outputs = [x for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)]
        output = outputs[0] if len(outputs) == 1 else torch.cat([x.flatten() for x in outputs])
        slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        wanted = [*tree_leaves(latents), *trained]
        grads = torch.autograd.grad(output, wanted, slope, allow_unused=True)
    unused = (torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, wanted, strict=True))
    return [output.detach(), *unused]
