"""polyturn: multi-turn agents trained from preferences over whole trajectories.

Importing it registers the environments with Gymnasium, so that `gymnasium.make("polyturn/ToolMath-v0")` works. The
public names stand in `__init__.pyi` and are loaded when first used; torch is loaded by the first name that needs it.
"""

import lazy_loader

from polyturn.envs import registration as _registration

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

_registration.register_built_in()
