"""Which of diffusers' transformers the ops stand in for, and why not in the others."""

# The class, and the file here that knows its blocks.
FAMILIES = {
    "AuraFlowTransformer2DModel": "mmdit.auraflow",
    "BriaFiboTransformer2DModel": "mmdit.flux_kin",
    "BriaTransformer2DModel": "mmdit.flux_kin",
    "ChromaTransformer2DModel": "mmdit.chroma",
    "CogVideoXTransformer3DModel": "video.cogvideox",
    "Flux2Transformer2DModel": "mmdit.flux2",
    "Flux3Transformer2DModel": "mmdit.flux3",
    "FluxTransformer2DModel": "mmdit.flux",
    "HunyuanVideoTransformer3DModel": "video.hunyuan_video",
    "Krea2Transformer2DModel": "mmdit.krea2",
    "LTXVideoTransformer3DModel": "video.ltx",
    "LongCatImageTransformer2DModel": "mmdit.flux_kin",
    "NucleusMoEImageTransformer2DModel": "mmdit.nucleus",
    "OvisImageTransformer2DModel": "mmdit.flux_kin",
    "QwenImage21Transformer2DModel": "mmdit.qwenimage21",
    "QwenImageTransformer2DModel": "mmdit.qwenimage",
    "SD3Transformer2DModel": "mmdit.sd3",
    "WanTransformer3DModel": "video.wan",
}

# Of the others: what a kernel would have to do that none of the ops does. A test holds both lists against diffusers.
REASONS: dict[str, str] = {
    "LTX2VideoTransformer3DModel": "not written yet",
}
