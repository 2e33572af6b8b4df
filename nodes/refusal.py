"""Safety Direction Refusal: what host mode puts in place of every graph while its policy can't be followed."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import CATEGORY


class SafetyDirectionRefusal(io.ComfyNode):
    """Never runs: validating it fails with its message, which is how the person who queued the graph gets to read it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionRefusal",
            display_name="Safety Direction Refusal",
            category=f"{CATEGORY}/host",
            description="Refuses to run. Host mode puts it in place of every graph while its policy can't be followed.",
            inputs=[io.String.Input("message", tooltip="Why.")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, message: str) -> str:
        return message or "refused"

    @classmethod
    def execute(cls, message: str) -> io.NodeOutput:
        raise ValueError(message)
