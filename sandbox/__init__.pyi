"""The public names of this floor, each with the module it is loaded from when first used."""

from .opening import open_sandbox as open_sandbox
from .sandbox import (
    Capabilities as Capabilities,
    ImageMissing as ImageMissing,
    Limits as Limits,
    Result as Result,
    Sandbox as Sandbox,
    SandboxError as SandboxError,
    SandboxLost as SandboxLost,
    SandboxUnavailable as SandboxUnavailable,
    Session as Session,
    Status as Status,
    Timings as Timings,
)
