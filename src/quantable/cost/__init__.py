"""Cost models: arithmetic on layer shapes and bit-widths to a number with its unit, without torch.

One metric is one module; import from the module (``from quantable.cost.bops import bops``).
"""
