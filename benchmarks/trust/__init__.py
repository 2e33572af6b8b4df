"""Campaigns against the pack: hostile files, killed processes, a loaded server, words spelt otherwise. SECURITY.md
has what they found."""
