"""Steps 1 to 5 of the training guide, one module per stage, each with plan, run and verify.

Stage code runs in the environment that ``ucllm setup`` made, whose Python may be 3.9, with nothing of the tool
beside it: modules here import nothing of ``bootstrap``, and heavy libraries only inside the functions that use them.
"""
