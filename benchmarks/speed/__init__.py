"""What the pack costs, as ratios: everything that is compared runs in turn within one process. `python -m benchmarks.speed`"""
