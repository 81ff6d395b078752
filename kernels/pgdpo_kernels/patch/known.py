"""Which of diffusers' transformers the ops stand in for, and why not in the others."""

# The class, and the file here that knows its blocks.
FAMILIES = {
    "CogVideoXTransformer3DModel": "video.cogvideox",
    "DiTTransformer2DModel": "image.basic",
    "ErnieImageTransformer2DModel": "image.ernie_image",
    "HiDreamImageTransformer2DModel": "image.hidream",
    "HunyuanVideoTransformer3DModel": "video.hunyuan_video",
    "Ideogram4Transformer2DModel": "image.ideogram4",
    "LTXVideoTransformer3DModel": "video.ltx",
    "Lumina2Transformer2DModel": "image.lumina",
    "LuminaNextDiT2DModel": "image.lumina",
    "PRXTransformer2DModel": "image.prx",
    "PixArtTransformer2DModel": "image.basic",
    "PriorTransformer": "image.basic",
    "SanaTransformer2DModel": "image.sana",
    "Transformer2DModel": "image.basic",
    "TransformerTemporalModel": "image.basic",
    "WanTransformer3DModel": "video.wan",
    "ZImageTransformer2DModel": "image.lumina",
}

# Of the others: what a kernel would have to do that none of the ops does. A test holds both lists against diffusers.
REASONS: dict[str, str] = {
    "LTX2VideoTransformer3DModel": "not written yet",
}
