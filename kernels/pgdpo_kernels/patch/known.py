"""Which of diffusers' transformers the ops stand in for, and why not in the others."""

# The class, and the file here that knows its blocks.
FAMILIES = {
    "AllegroTransformer3DModel": "video.allegro",
    "CogVideoXTransformer3DModel": "video.cogvideox",
    "CogView3PlusTransformer2DModel": "image.cogview",
    "CogView4Transformer2DModel": "image.cogview",
    "ConsisIDTransformer3DModel": "video.cogvideox",
    "EasyAnimateTransformer3DModel": "video.easyanimate",
    "GlmImageTransformer2DModel": "image.cogview",
    "HunyuanDiT2DModel": "image.hunyuan_dit",
    "HunyuanImageTransformer2DModel": "video.hunyuan_video",
    "HunyuanVideo15Transformer3DModel": "video.hunyuan_video",
    "HunyuanVideoFramepackTransformer3DModel": "video.hunyuan_video",
    "HunyuanVideoTransformer3DModel": "video.hunyuan_video",
    "JoyImageEditPlusTransformer3DModel": "image.joy_image_plus",
    "JoyImageEditTransformer3DModel": "image.joy_image",
    "Kandinsky5Transformer3DModel": "video.kandinsky5",
    "Kandinsky6SRTransformer3DModel": "video.kandinsky6",
    "Kandinsky6Transformer3DModel": "video.kandinsky6",
    "LatteTransformer3DModel": "video.allegro",
    "LTXVideoTransformer3DModel": "video.ltx",
    "MochiTransformer3DModel": "video.mochi",
    "WanTransformer3DModel": "video.wan",
}

# Of the others: what a kernel would have to do that none of the ops does. A test holds both lists against diffusers.
REASONS: dict[str, str] = {
    "LTX2VideoTransformer3DModel": "not written yet",
}
