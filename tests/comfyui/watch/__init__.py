"""A node pack for tests: what conditioning a sampler really sees, and conditioning that was tampered with."""

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file


class WatchModel(io.ComfyNode):
    """Writes output/<name>.safetensors, the cross-attention states that the model is first called with, by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="WatchModel", category="testing", inputs=[io.Model.Input("model"), io.String.Input("name")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        path = os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors")

        seen = {}

        def look(apply_model, options):
            states = options["c"]["c_crossattn"].chunk(len(options["cond_or_uncond"]))
            for side, rows in zip(options["cond_or_uncond"], states):
                if str(side) not in seen:
                    seen[str(side)] = rows.float().contiguous().clone()
                    save_file(seen, path)
            return apply_model(options["input"], options["timestep"], **options["c"])

        watched = model.clone()
        watched.set_model_unet_function_wrapper(look)
        return io.NodeOutput(watched)


class TinyCheckpoint(io.ComfyNode):
    """MODEL, CLIP and VAE as a checkpoint loader gives them; the MODEL is watched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.Model.Output(), io.Clip.Output(), io.Vae.Output()]
        return io.Schema(node_id="TinyCheckpoint", category="testing", inputs=[io.String.Input("name")], outputs=outputs)

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
        return io.Schema(node_id="Anything", category="testing", inputs=[io.AnyType.Input("value")], outputs=[io.AnyType.Output()])

    @classmethod
    def execute(cls, value) -> io.NodeOutput:
        return io.NodeOutput(value)


class Tamper(io.ComfyNode):
    """Puts a mark on other conditioning: a made-up one, or the real one of steered conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Conditioning.Input("conditioning"), io.Conditioning.Input("steered")]
        return io.Schema(node_id="Tamper", category="testing", inputs=[*inputs, io.Combo.Input("mark", options=["made up", "moved"])], outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, conditioning, steered, mark) -> io.NodeOutput:
        real = steered[0][1]["safety_direction"]
        forged = real if mark == "moved" else tuple(m._replace(seal=b"0" * len(m.seal)) for m in real)
        return io.NodeOutput([[cond.clone(), {**extras, "safety_direction": forged}] for cond, extras in conditioning])


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [WatchModel, TinyCheckpoint, Anything, Tamper]


async def comfy_entrypoint() -> Extension:
    return Extension()
