"""On the PYTHONPATH of a test's process: as if none of the optional extras were installed."""

from importlib.machinery import PathFinder

EXTRAS = {"accelerate", "diffusers", "eval_unlearn", "gguf", "nudenet", "onnxruntime", "pyarrow", "ray"}
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if name in EXTRAS else find_spec(name, path, target)
