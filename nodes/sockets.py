"""The pack's own socket types."""

from comfy_api.latest import io

CATEGORY = "conditioning/safety"

Direction = io.Custom("SAFETY_DIRECTION")
Aligned = io.Custom("ALIGNED_DIRECTION")
