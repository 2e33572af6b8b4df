"""A miniature text-to-image generator: emoji scenes, 32x32 pixels, trained on a plain CPU, sampled by ComfyUI.

One network, behind MiniLM or, with cross-attention of its own (1.7 MB), behind Gemma-3-270M; with a motion module
(1 MB) it draws clips of 4 frames.

scenes         the icons, their names, the captions, the renderings
encoder        the frozen text encoders' token states
model          ComfyUI's UNetModel at tiny width, its flow-matching loss, a plain sampler, weight files
train          the training loop
judge          a classifier over the icons: what is in a picture; features for FID
measure        how well it draws what it is asked for, by the judge
comfy_model    the generator as ComfyUI's MODEL; pack/ has the nodes that load it, workflow.json a graph with it
comfy_encoder  Gemma-3-270M as ComfyUI's CLIP

`python -m miniature --help` lists the commands. It proves the path from a direction file to pixels; it claims
nothing about larger models.
"""
