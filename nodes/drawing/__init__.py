"""Pictures of what steering does: a prompt's words by score (heatmap), and what a sweep found (plots). Needs no ComfyUI."""
