"""safety-directions: portable safety steering for every text encoder that ComfyUI loads."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI calls this to get the pack's nodes."""
    from .nodes import SafetyDirections

    return SafetyDirections()
