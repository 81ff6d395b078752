"""Which of diffusers' transformers the ops stand in for, and why not in the others."""

# The class, and the file here that knows its blocks.
FAMILIES = {
    "AllegroTransformer3DModel": "video.allegro",
    "ChronoEditTransformer3DModel": "video.wan_kin",
    "CogVideoXTransformer3DModel": "video.cogvideox",
    "CogView3PlusTransformer2DModel": "image.cogview",
    "CogView4Transformer2DModel": "image.cogview",
    "ConsisIDTransformer3DModel": "video.cogvideox",
    "DiTTransformer2DModel": "image.basic",
    "EasyAnimateTransformer3DModel": "video.easyanimate",
    "ErnieImageTransformer2DModel": "image.ernie_image",
    "GlmImageTransformer2DModel": "image.cogview",
    "HiDreamImageTransformer2DModel": "image.hidream",
    "HunyuanDiT2DModel": "image.hunyuan_dit",
    "HunyuanImageTransformer2DModel": "video.hunyuan_video",
    "HunyuanVideo15Transformer3DModel": "video.hunyuan_video",
    "HunyuanVideoFramepackTransformer3DModel": "video.hunyuan_video",
    "HunyuanVideoTransformer3DModel": "video.hunyuan_video",
    "Ideogram4Transformer2DModel": "image.ideogram4",
    "JoyImageEditPlusTransformer3DModel": "image.joy_image_plus",
    "JoyImageEditTransformer3DModel": "image.joy_image",
    "Kandinsky5Transformer3DModel": "video.kandinsky5",
    "Kandinsky6SRTransformer3DModel": "video.kandinsky6",
    "Kandinsky6Transformer3DModel": "video.kandinsky6",
    "LTX2VideoTransformer3DModel": "video.ltx2",
    "LTXVideoTransformer3DModel": "video.ltx",
    "LatteTransformer3DModel": "video.allegro",
    "Lumina2Transformer2DModel": "image.lumina",
    "LuminaNextDiT2DModel": "image.lumina",
    "MochiTransformer3DModel": "video.mochi",
    "PRXTransformer2DModel": "image.prx",
    "PixArtTransformer2DModel": "image.basic",
    "PriorTransformer": "image.basic",
    "SanaTransformer2DModel": "image.sana",
    "SkyReelsV2Transformer3DModel": "video.wan_kin",
    "Transformer2DModel": "image.basic",
    "TransformerTemporalModel": "image.basic",
    "WanAnimateTransformer3DModel": "video.wan_kin",
    "WanTransformer3DModel": "video.wan",
    "WanVACETransformer3DModel": "video.wan_kin",
    "ZImageTransformer2DModel": "image.lumina",
}

# Of the others: what a kernel would have to do that none of the ops does. A test holds both lists against diffusers.
REASONS: dict[str, str] = {
}
