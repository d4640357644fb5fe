"""Text that is safe to show, and the speakers of a trajectory."""

from __future__ import annotations

from polyturn.envs.trajectory import Trajectory


def printable(text: str) -> str:
    """Text that cannot drive a terminal or reorder what is around it: escapes for all but printable characters."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1] for character in text
    )


def roles(trajectory: Trajectory) -> tuple[str, str]:
    """The speakers of a trajectory: as the environment says, where it is installed and says so."""
    from polyturn.envs.registration import creator, env_spec

    try:
        env, agent = getattr(creator(env_spec(trajectory.env_id)), "roles", ("env", "agent"))
    except Exception:  # a store may be read where its environment is not installed, or is broken
        return "env", "agent"
    return (agent, env) if trajectory.env_options.get("side") == "partner" else (env, agent)
