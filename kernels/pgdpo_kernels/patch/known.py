"""Which of diffusers' transformers the ops stand in for, and why not in the others."""

# The class, and the file here that knows its blocks.
FAMILIES = {
    "ChronoEditTransformer3DModel": "video.wan_kin",
    "CogVideoXTransformer3DModel": "video.cogvideox",
    "HunyuanVideoTransformer3DModel": "video.hunyuan_video",
    "LTX2VideoTransformer3DModel": "video.ltx2",
    "LTXVideoTransformer3DModel": "video.ltx",
    "SkyReelsV2Transformer3DModel": "video.wan_kin",
    "WanAnimateTransformer3DModel": "video.wan_kin",
    "WanTransformer3DModel": "video.wan",
    "WanVACETransformer3DModel": "video.wan_kin",
}

# Of the others: what a kernel would have to do that none of the ops does. A test holds both lists against diffusers.
REASONS: dict[str, str] = {}
