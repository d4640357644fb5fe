"""Commands of this floor: `polyturn rollout`, `serve`, `view` and `show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from polyturn.agents.viewing import add_show, add_view
from polyturn.envs.plugins import is_reference, named, plugins

ROLLOUT_HELP = """\
examples:
  polyturn rollout polyturn/ToolMath-v0 --agent gold --problems gsm8k_test.jsonl --out gold.jsonl
  polyturn rollout polyturn/ToolMath-v0 --agent my/model --groups 64 --group-size 8 --seed 0 --out runs.jsonl
  polyturn rollout polyturn/Guess-v0 --agent random --groups 100
  polyturn rollout polyturn/ToolMath-v0 --agent human -o sandbox=local
  polyturn rollout polyturn/EducationDialogue-v0 --agent demonstrator --show 3
  polyturn rollout polyturn/CarDealer-v0 --agent my/model --partner server:gpt-4o-mini --out dealer.jsonl \\
      --partner-out buyer.jsonl
  polyturn rollout polyturn/EducationDialogue-v0 --agent my/model --group-size 4 --branch-at 5 --out pairs.jsonl
  polyturn rollout polyturn/ToolMath-v0 --agent my/model --groups 512 --out runs.jsonl --ray head:6379 \\
      --ray-weights /shared/weights

AGENT is gold, demonstrator, random, human, server:MODEL (an OpenAI-compatible chat server, its key in OPENAI_API_KEY),
a model's folder or Hub id, or your own: module:attribute, or a name of the entry-point group "polyturn.agents". An
interrupted command goes on where it stopped: run it again with the same --out.
"""

AGENT_HELP = "gold, demonstrator, random, human, server:MODEL, module:attribute, or a model's folder or Hub id"
ENV_OPTIONS_HELP = "option of the environment; VALUE is JSON, or else text (may be repeated)"


def _add_push(subparsers: Any) -> None:
    push = subparsers.add_parser(
        "push",
        help="upload a policy or stored trajectories to the Hugging Face Hub",
        epilog="examples:\n  polyturn push runs/mdpo/iteration-3/policy me/solver\n"
        "  polyturn push runs.jsonl me/conversations --public",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    push.add_argument("path", type=Path, help="a policy's folder, or a store of trajectories")
    push.add_argument("repository", metavar="USER/NAME", help="made where it does not exist")
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    from polyturn.agents.hub import push

    print(f"uploaded to {push(args.path, args.repository, private=not args.public)}")
    return 0


def add_commands(subparsers: Any) -> None:
    """Adds this floor's commands to the parser of `polyturn`."""
    _add_push(subparsers)
    add_view(subparsers)
    add_show(subparsers)
    rollout = subparsers.add_parser(
        "rollout",
        help="collect trajectories of an agent in an environment",
        epilog=ROLLOUT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_env_arguments(rollout, positional=True)
    rollout.add_argument(
        "--agent",
        required=True,
        metavar="AGENT",
        help=AGENT_HELP,
    )
    rollout.add_argument(
        "--partner", metavar="AGENT", help="the agent that plays the other side of a conversation (default: scripted)"
    )
    rollout.add_argument("--base-url", metavar="URL", help="of server:MODEL (default: OPENAI_BASE_URL, or OpenAI's)")
    rollout.add_argument("--groups", type=int, help="how many starts (default: every problem, or 1)")
    rollout.add_argument("--group-size", type=int, default=1, help="episodes per start (default 1)")
    rollout.add_argument(
        "--branch-at",
        type=turn_or_every,
        metavar="K",
        help="members of a group share the agent's first K turns; every: a tree that parts at each turn",
    )
    rollout.add_argument("--same-noise", action="store_true", help="members share the environment's noise too")
    add_sampling_arguments(rollout)
    rollout.add_argument(
        "--concurrency", type=int, default=64, help="episodes at once, with --ray in each worker (default 64)"
    )
    rollout.add_argument(
        "--ray", metavar="ADDRESS", help="play on a Ray cluster: host:port, auto, or local for one that is started here"
    )
    rollout.add_argument(
        "--ray-weights", metavar="FOLDER", help="a folder that all its nodes see, for a model's weights (with --ray)"
    )
    rollout.add_argument("--ray-gpus", type=float, default=0.0, help="GPUs of each of its workers (default 0)")
    rollout.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    rollout.add_argument("--out", type=Path, help="store to append to; what is in it already is not run again")
    rollout.add_argument("--partner-out", type=Path, help="store for the other side of each conversation (with --out)")
    rollout.add_argument("--show", type=int, default=0, metavar="N", help="print the first N episodes")
    rollout.add_argument(
        "--misses",
        type=int,
        default=0,
        metavar="N",
        help="print the first N episodes that failed, where the environment says what success is",
    )
    rollout.add_argument("--quiet", action="store_true", help="no progress bar")
    rollout.set_defaults(run=_rollout)
    add_serve(subparsers)


def add_env_arguments(parser: argparse.ArgumentParser, *, positional: bool) -> None:
    """Arguments that choose and configure an environment; shared with training and evaluation."""
    if positional:
        parser.add_argument("env", metavar="ENV_ID", help="id of the environment (see polyturn envs)")
    else:
        parser.add_argument("--env", default="polyturn/ToolMath-v0", help="id (default polyturn/ToolMath-v0)")
    parser.add_argument("--problems", help="problems of ToolMath: JSONL file, data set, or generated:LEVEL:SIZE")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE", help=ENV_OPTIONS_HELP)


def turn_or_every(text: str) -> int | Literal["every"]:
    """A turn, or "every", as `--branch-at` has it.

    Raises:
        ValueError: Neither.
    """
    return "every" if text == "every" else int(text)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how a model samples; shared with training and evaluation."""
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default 1: off)")
    parser.add_argument("--top-k", type=int, default=0, help="sample from the K most likely tokens (default 0: off)")
    parser.add_argument("--min-p", type=float, default=0.0, help="drop tokens below this share of the likeliest's")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a turn (may be repeated)")
    parser.add_argument("--max-episode-tokens", type=int, help="tokens of all turns of an episode (default: no limit)")
    parser.add_argument("--max-thinking-tokens", type=int, help="tokens of a turn inside <think> (default: no limit)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="tokens of a turn (default 512)")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens of an episode (default 2048)")
    parser.add_argument("--slots", type=int, default=64, help="episodes the model holds at once (default 64)")
    parser.add_argument(
        "--engine",
        metavar="ENGINE",
        help="what samples: exact (default), transformers, vllm, or addresses of vLLM servers (http://host:port/v1,http://...)",
    )
    parser.add_argument(
        "--engine-weights",
        choices=["served", "handed"],
        help="with addresses: the servers serve the model's weights, or are handed them (default: handed in training)",
    )
    parser.add_argument(
        "--engine-folder", metavar="FOLDER", help="with addresses: where weights are written for the servers to read"
    )


def env_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the environment from the command line.

    Problems are loaded once here and shared by all instances.
    """
    from polyturn.envs.cli import parse_option
    from polyturn.envs.registration import env_spec
    from polyturn.envs.tool_math.problems import load_problems

    options = dict(parse_option(text) for text in args.option)
    if args.problems is not None:
        options["problems"] = args.problems
    env_spec(args.env)
    if isinstance(options.get("problems"), str):
        options["problems"] = load_problems(options["problems"], split=options.get("split", "train"))
    return options


def sampling(args: argparse.Namespace) -> Any:
    """The `Sampling` of `add_sampling_arguments`."""
    from polyturn.agents.transformer.generation import Sampling

    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        top_k=args.top_k,
        min_p=args.min_p,
        stop=tuple(args.stop),
        max_episode_tokens=args.max_episode_tokens,
        max_thinking_tokens=args.max_thinking_tokens,
    )


def engine(args: argparse.Namespace, *, weights: Literal["served", "handed"] = "served") -> Any:
    """The engine of `add_sampling_arguments`.

    Args:
        args: The command line.
        weights: What `--engine-weights` is where it is not given.

    Raises:
        ValueError: There is no such engine, or an option of servers without any.
    """
    from dataclasses import replace

    from polyturn.agents.transformer.engines.settings import TokenServers, chosen_engine

    found = chosen_engine(args.engine or "exact")
    if isinstance(found, TokenServers):
        return replace(found, weights=args.engine_weights or weights, folder=args.engine_folder)
    for name in ("engine_weights", "engine_folder"):
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: expected addresses of servers (--engine http://...) to go with it, got none")
    return found


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `TransformerAgent` takes of the command line."""
    return {
        "sampling": sampling(args),
        "max_tokens": args.max_tokens,
        "slots": args.slots,
        "engine": engine(args),
    }


def _without(args: argparse.Namespace, what: str) -> None:
    """Refuses options of sampling that only a policy's own agent knows.

    Raises:
        ValueError: One is given.
    """
    for name in ("top_k", "min_p", "stop", "max_episode_tokens", "max_thinking_tokens", "engine"):
        value = getattr(args, name)
        if value is not None if name.startswith("max_") else value:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: expected a local model to go with it, got {what}; leave it out")


def no_loading_bars() -> None:
    """Turns off progress bars of transformers: a run loads and saves many policies."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_agent(name: str, args: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The agent named on the command line.

    Raises:
        ValueError: A scripted agent was asked for in an environment that has none.
    """
    from polyturn.agents.agent import HumanAgent, RandomAgent

    if name == "random":
        return RandomAgent()
    if name == "human":
        return HumanAgent()
    if name == "gold":
        from polyturn.agents.scripted.gold import GoldAgent

        return GoldAgent(problems_of(args.env, options))
    if name == "demonstrator":
        return _demonstrator(args.env, options)
    if name.startswith("server:"):
        from polyturn.agents.api import ServerAgent

        _without(args, f"a server's model ({name})")
        return ServerAgent(
            name.removeprefix("server:"),
            base_url=args.base_url,
            temperature=args.temperature,
            top_p=args.top_p if args.top_p < 1 else None,
            max_tokens=args.max_new_tokens,
            concurrency=args.concurrency,
        )
    if is_reference(name) or name in plugins("polyturn.agents"):
        return _own_agent(name)
    return model_agent(name, args)


def model_agent(name: str, args: argparse.Namespace) -> Any:
    """A model's folder or Hub id as an agent that samples as the command line says."""
    from polyturn.agents.transformer.agent import TransformerAgent

    no_loading_bars()
    return TransformerAgent.from_pretrained(name, **model_options(args))


def _own_agent(name: str) -> Any:
    """An agent that others wrote: a class or a function that makes one, or the agent itself."""
    from polyturn.agents.agent import Agent

    found = named(name, "polyturn.agents", "an agent")
    if isinstance(found, type) or (callable(found) and not isinstance(found, Agent)):
        found = found()
    if not isinstance(found, Agent):
        raise ValueError(f"{name}: expected an agent, anything with act(episode), got {type(found).__name__}")
    return found


def _demonstrator(env_id: str, options: dict[str, Any]) -> Any:
    """The scripted agent of an environment, of mixed quality."""
    role = _roles(env_id)[1]
    if role == "teacher":
        from polyturn.agents.scripted.teachers import ScriptedTeacher

        return ScriptedTeacher()
    if role == "dealer":
        from polyturn.agents.scripted.sellers import ScriptedSeller

        return ScriptedSeller()
    from polyturn.agents.scripted.demonstrator import Demonstrator

    return Demonstrator(problems_of(env_id, options))


def _roles(env_id: str) -> tuple[str, str]:
    """The roles of the partner and of the agent; empty where the environment is no conversation with a partner."""
    from polyturn.envs.registration import creator, env_spec

    partner, agent = getattr(creator(env_spec(env_id)), "roles", ("", ""))
    return partner, agent


def _with_partner(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the agent that plays the other side.

    Raises:
        ValueError: The environment has no other side, or what was asked for needs one.
    """
    if args.partner is None:
        if args.partner_out is not None:
            raise ValueError("rollout: expected --partner AGENT to go with --partner-out, got none")
        return options
    from polyturn.agents.collecting.roles import AgentPartner

    role, _ = _roles(args.env)
    if not role:
        raise ValueError(f"rollout: expected an environment with another side for --partner, got {args.env}")
    if args.partner in ("gold", "demonstrator") or role in options:
        raise ValueError(
            f"rollout: expected --partner random, human, server:MODEL or a model for the {role}, and no -o {role}=..., "
            f"got {args.partner!r}; leave --partner out for the scripted {role}"
        )
    if args.partner_out is not None and args.out is None:
        raise ValueError("rollout: expected --out to go with --partner-out, since resuming needs both; got none")
    return options | {role: AgentPartner(make_agent(args.partner, args, options))}


def problems_of(env_id: str, options: dict[str, Any]) -> Any:
    """The problems an environment made with these options draws from.

    Raises:
        ValueError: It has none.
    """
    from polyturn.envs.registration import make

    env = make(env_id, **options)
    try:
        found = getattr(getattr(env, "unwrapped", env), "problems", None)
    finally:
        env.close()
    if found is None:
        raise ValueError(f"expected an environment with problems, such as polyturn/ToolMath-v0, got {env_id}")
    return found


def _rollout(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from polyturn.agents.collecting.collect import collect
    from polyturn.envs.store import Store

    if args.ray is None and (args.ray_weights or args.ray_gpus):
        raise ValueError("rollout: expected --ray ADDRESS to go with --ray-weights and --ray-gpus, got none")
    options = env_options(args)
    agent = make_agent(args.agent, args, options)
    options = _with_partner(args, options)
    tasks = None
    if "problems" in options:
        count = len(options["problems"]) if args.groups is None else args.groups
        tasks = [group % len(options["problems"]) for group in range(count)]
    try:
        with ExitStack() as stores:
            store = stores.enter_context(Store(args.out)) if args.out else None
            partner_store = stores.enter_context(Store(args.partner_out)) if args.partner_out else None
            on = None if args.ray is None else stores.enter_context(_cluster(args))
            groups = collect(
                agent,
                args.env,
                groups=args.groups if tasks is None else len(tasks),
                group_size=args.group_size,
                seed=args.seed,
                tasks=tasks,
                env_options=options,
                branch_at=args.branch_at,
                same_noise=args.same_noise,
                concurrency=args.concurrency,
                on=on,
                store=store,
                partner_store=partner_store,
                progress=not args.quiet,
                label="rollout",
            )
    except KeyboardInterrupt:
        how = f"run the same command again to go on with {args.out}" if args.out else "--out keeps what is finished"
        raise KeyboardInterrupt(how) from None
    return _summarise(args, groups)


def _cluster(args: argparse.Namespace) -> Any:
    from polyturn.agents.collecting.cluster import RayCluster

    return RayCluster(args.ray, weights=args.ray_weights, gpus=args.ray_gpus)


def _summarise(args: argparse.Namespace, groups: Any) -> int:
    from polyturn.envs.outcomes import clustered, mean_of_problems, success_of
    from polyturn.envs.viewing.terminal import print_trajectory
    from polyturn.envs.viewing.text import printable

    episodes = [member for group in groups for member in group]
    for number, member in enumerate(episodes[: args.show], 1):
        print_trajectory(member, number)
    valid = [member for member in episodes if member.valid]
    outcomes = {id(member): success_of(member) for member in valid}
    missed = [member for member in valid if outcomes[id(member)] is False]
    for member in missed[: args.misses]:
        print(f"--- {member.task_id or member.seed}: {printable(str(dict(member.info)))}")
        for message in member.messages():
            print(f"[{message['role']}] {printable(message['content'])}")
    print(f"episodes     {len(episodes)}" + (f" in {args.out}" if args.out else ""))
    if len(valid) < len(episodes):
        errors = sorted({member.error or "never ended" for member in episodes if not member.valid})
        print(f"invalid      {len(episodes) - len(valid)}: {printable('; '.join(errors[:3]))}")
    if not valid:
        return 1
    if not any(member.turns for member in valid):
        why = sorted({str(member.info.get("context", "the episode ended at its start")) for member in valid})
        print(f"turns        none in any episode: {printable('; '.join(why[:3]))}")
        return 1
    turns = sum(len(member.turns) for member in valid) / len(valid)
    kept = [found for found in ([m for m in group if m.valid] for group in groups) if found]
    print(f"mean return  {mean_of_problems([[m.total_reward for m in members] for members in kept])}")
    if not any(outcome is None for outcome in outcomes.values()):
        print(f"success      {clustered([[bool(outcomes[id(m)]) for m in members] for members in kept])}")
    elif args.misses:
        print("misses       none printed: the environment does not declare what success is; --show N prints episodes")
    print(f"turns        {turns:.2f}")
    if empty := sum(not member.turns for member in valid):
        print(f"empty        {empty} episodes had no turn, such as those whose first prompt did not fit")
    return 0


SERVE_HELP = """\
examples:
  polyturn serve --model runs/sft/policy --store calls.jsonl
  polyturn serve --model my/model --store calls.jsonl --port 8000 --temperature 0.7

It prints where it listens, and the operator's key (or takes it from POLYTURN_OPERATOR_KEY). With that key

  POST /v1/episodes         {"task_id": "t1", "seed": 0, "member": 0}       -> {"key": KEY}
  POST /v1/episodes/finish  {"key": KEY, "reward": 1.0} or {..., "error": "why it failed"}

begin and end a run. KEY is the API key of the program that runs: for OpenAI's chat completions and Responses at URL/v1,
for Anthropic's Messages at URL. Sampling is the server's. What was not finished when the server ends is stored as
invalid.
"""


def add_serve(subparsers: Any) -> None:
    """Adds `polyturn serve`."""
    serve = subparsers.add_parser(
        "serve",
        help="answer agent programs over HTTP; each run of a program becomes a trajectory",
        epilog=SERVE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--model", required=True, help="folder or Hub id of the policy")
    serve.add_argument("--store", type=Path, required=True, help="store that finished runs are appended to")
    serve.add_argument("--host", default="127.0.0.1", help="interface to listen on (default 127.0.0.1: this machine)")
    serve.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    add_sampling_arguments(serve)
    serve.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    import os
    import secrets
    import threading

    from polyturn.agents.serving.server import AgentServer
    from polyturn.agents.transformer.agent import TransformerAgent
    from polyturn.envs.store import Store

    if args.stop or args.max_episode_tokens or args.max_thinking_tokens is not None:
        raise ValueError(
            "serve: expected callers to say where an answer ends (stop, max_tokens), got --stop, "
            "--max-episode-tokens or --max-thinking-tokens; leave them out"
        )
    no_loading_bars()
    agent = TransformerAgent.from_pretrained(args.model, **model_options(args))
    given = os.environ.get("POLYTURN_OPERATOR_KEY")
    key = given or secrets.token_urlsafe(24)
    with (
        Store(args.store) as store,
        AgentServer(agent, host=args.host, port=args.port, store=store, operator_key=key) as server,
    ):
        print(f"listening at {server.root}" + ("" if given else f"\noperator key {key}"), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"finished runs are in {args.store}") from None
    return 0
