"""Floor 2: agents, and how trajectories are collected.

The public names stand in `__init__.pyi` and are loaded when first used, so that importing this package loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
