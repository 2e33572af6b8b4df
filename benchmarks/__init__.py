"""What the figures of RESULTS.md and the README come from: one command each."""
