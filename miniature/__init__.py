"""A miniature text-to-image generator: emoji scenes, 32x32 pixels, trained on a plain CPU, sampled by ComfyUI.

scenes        the icons, their names, the captions, the renderings
encoder       the frozen text encoder's token states
model         ComfyUI's UNetModel at tiny width, its flow-matching loss, a plain sampler, weight files
train         the training loop
judge         a classifier over the icons: what is in a picture; features for FID
comfy_model   the generator as ComfyUI's MODEL; pack/ is the node that loads it, workflow.json a graph with it

`python -m miniature --help` lists the commands. It proves the path from a direction file to pixels; it claims
nothing about larger models.
"""
