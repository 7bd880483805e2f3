"""How good and how fast a model is: sets, metrics and reports."""
