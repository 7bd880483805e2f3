"""Examples for a prompt: embed, index, search, and hand back documents."""
