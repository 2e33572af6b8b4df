"""The demo, and the real ComfyUI that it and the tests run in."""
