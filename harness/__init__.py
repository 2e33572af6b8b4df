"""The real ComfyUI that the tests, the benchmarks and the demo run in.

environment   gets a ComfyUI and a Python that runs it, into a cache folder
server        starts it with this pack in it, and talks to it
workflow      turns a saved workflow into what its queue takes
templates     makes the workflows that its template browser shows
demo          what `make demo` runs
"""
