"""Campaigns against the pack: hostile files, killed processes, a loaded server. SECURITY.md has what they found."""
