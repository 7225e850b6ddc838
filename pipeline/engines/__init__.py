"""Who does a stage's heavy work: one module per engine, chosen by the recipe."""
