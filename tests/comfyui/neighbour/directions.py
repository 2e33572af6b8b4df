"""Another pack's module of this name."""
