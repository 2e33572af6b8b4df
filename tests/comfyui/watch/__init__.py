"""A node pack for tests: what conditioning a sampler really sees, and conditioning that was tampered with."""

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file


class WatchModel(io.ComfyNode):
    """Writes output/<name>.safetensors, the cross-attention states that the model is first called with, by side; of
    the first side also `y`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WatchModel",
            category="testing",
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        path = os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors")

        seen = {}

        def look(module, args, options):
            sides = options["transformer_options"]["cond_or_uncond"]
            parts = {name: options[name].chunk(len(sides)) for name in ("context", "crossattn_controlnet", "y") if options.get(name) is not None}
            for at, side in enumerate(sides):
                if str(side) not in seen:
                    seen[str(side)] = parts["context"][at].float().contiguous().clone()
                    if "crossattn_controlnet" in parts:
                        seen["controlnet"] = parts["crossattn_controlnet"][0].float().contiguous().clone()
                    if "y" in parts:
                        seen.setdefault("y", parts["y"][0].float().contiguous().clone())
                    save_file(seen, path)

        # Not a wrapper of ComfyUI's, which would have a say in how the sides are weighed; the latest watcher alone looks.
        inner = model.model.diffusion_model
        if hasattr(inner, "watcher"):
            inner.watcher.remove()
        inner.watcher = inner.register_forward_pre_hook(look, with_kwargs=True)
        return io.NodeOutput(model)


class TinyCheckpoint(io.ComfyNode):
    """MODEL, CLIP and VAE as a checkpoint loader gives them; the MODEL is watched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.Model.Output(), io.Clip.Output(), io.Vae.Output()]
        return io.Schema(
            node_id="TinyCheckpoint", category="testing", inputs=[io.String.Input("name")], outputs=outputs
        )

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        import nodes

        model, vae = nodes.NODE_CLASS_MAPPINGS["TinyImageModel"].execute().args
        (clip,) = nodes.NODE_CLASS_MAPPINGS["SafetyDirectionSmallEncoder"].execute().args
        return io.NodeOutput(*WatchModel.execute(model, name).args, clip, vae)


class Anything(io.ComfyNode):
    """Passes anything on, as reroute and switch nodes of many packs do: no socket type says what."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anything", category="testing", inputs=[io.AnyType.Input("value")], outputs=[io.AnyType.Output()]
        )

    @classmethod
    def execute(cls, value) -> io.NodeOutput:
        return io.NodeOutput(value)


class Tamper(io.ComfyNode):
    """Puts a mark on other conditioning: a made-up one, or the real one of steered conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Conditioning.Input("conditioning"), io.Conditioning.Input("steered")]
        return io.Schema(
            node_id="Tamper",
            category="testing",
            inputs=[*inputs, io.Combo.Input("mark", options=["made up", "moved"])],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, steered, mark) -> io.NodeOutput:
        real = steered[0][1]["safety_direction"]
        forged = real if mark == "moved" else tuple(type(m)() for m in real)
        return io.NodeOutput([[cond.clone(), {**extras, "safety_direction": forged}] for cond, extras in conditioning])


class ShuffledClip(io.ComfyNode):
    """The small encoder with its weights shuffled: as wide, and no direction means anything in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="ShuffledClip", category="testing", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        import torch

        import nodes

        (clip,) = nodes.NODE_CLASS_MAPPINGS["SafetyDirectionSmallEncoder"].execute().args
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in clip.cond_stage_model.parameters():
                if weights.dim() == 2:
                    weights.copy_(
                        weights.flatten()[torch.randperm(weights.numel(), generator=draw)].reshape(weights.shape)
                    )
        return io.NodeOutput(clip)


class OddGuider(io.ComfyNode):
    """A guider of another pack: it draws what it calls the negative side, and calls its scale by another name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Model.Input("model"), io.Conditioning.Input("wanted")]
        return io.Schema(node_id="OddGuider", category="testing", inputs=inputs, outputs=[io.Guider.Output()])

    @classmethod
    def execute(cls, model, wanted) -> io.NodeOutput:
        import comfy.samplers

        class Odd(comfy.samplers.CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):
                return comfy.samplers.calc_cond_batch(
                    self.inner_model, [self.conds["negative"]], x, timestep, model_options
                )[0]

        guider = Odd(model)
        guider.inner_set_conds({"negative": wanted})
        return io.NodeOutput(guider)


class Unmasked(io.ComfyNode):
    """Conditioning as text encoders without a mask give it; ComfyUI's style models take no other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Unmasked",
            category="testing",
            inputs=[io.Conditioning.Input("conditioning")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning) -> io.NodeOutput:
        return io.NodeOutput(
            [
                [cond, {name: value for name, value in extras.items() if name != "attention_mask"}]
                for cond, extras in conditioning
            ]
        )


class Expanding(io.ComfyNode):
    """Becomes a whole graph while it runs, with the MODEL and the CLIP that it is given, else with its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.String.Input("text"),
            io.String.Input("name"),
            io.Model.Input("model", optional=True),
            io.Clip.Input("clip", optional=True),
        ]
        return io.Schema(
            node_id="Expanding", category="testing", inputs=inputs, outputs=[io.Latent.Output()], enable_expand=True
        )

    @classmethod
    def execute(cls, text, name, model=None, clip=None) -> io.NodeOutput:
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        if model is None:
            ckpt = graph.node("TinyCheckpoint", name=name)
            model, clip = ckpt.out(0), ckpt.out(1)
        words = graph.node("CLIPTextEncode", clip=clip, text=text)
        latent = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)
        steps = {"steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
        drawn = graph.node(
            "KSampler", model=model, positive=words.out(0), negative=words.out(0), latent_image=latent.out(0), **steps
        )
        return io.NodeOutput(drawn.out(0), expand=graph.finalize())


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [WatchModel, TinyCheckpoint, Anything, Tamper, ShuffledClip, OddGuider, Unmasked, Expanding]


async def comfy_entrypoint() -> Extension:
    return Extension()
