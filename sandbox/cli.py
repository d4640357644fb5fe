"""`polyturn sandbox build | check | run | clean`."""

from __future__ import annotations

import argparse
import sys
import time

_EXAMPLES = """examples:
  polyturn sandbox build                          build the image (no registry needed on Debian as root)
  polyturn sandbox build --packages python3-scipy an image with more Debian packages
  polyturn sandbox build --method host            from this machine's Python: no root, no registry, no mirror
  polyturn sandbox check                          what works here, and what each kind protects
  polyturn sandbox check --runtime runsc          the same in gVisor's kernel, if the engine has it
  polyturn sandbox run program.py                 run a file in the sandbox; - or nothing reads standard input
  polyturn sandbox clean                          remove containers that crashed programs left
"""
_RUNTIME_HELP = "Docker container runtime, such as runsc (gVisor); means --sandbox docker"


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the `sandbox` command; each subcommand sets `run`, from arguments to exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "sandbox", help="build, check, use and clean the code sandbox", epilog=_EXAMPLES, formatter_class=raw,
        description="The sandbox runs model-written Python: in Docker, or in a weaker local one.",
    )  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    build = commands.add_parser(
        "build", help="build the container image", formatter_class=raw,
        epilog="example:\n  sudo polyturn sandbox build --method debootstrap",
    )  # fmt: skip
    build.add_argument(
        "--method", choices=("auto", "registry", "debootstrap", "host"), default="auto", help="default: auto"
    )
    build.add_argument(
        "--packages",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="more Debian packages; by host: more Python distributions",
    )
    build.add_argument("--mirror", default="http://deb.debian.org/debian", help="Debian mirror for debootstrap")
    build.add_argument(
        "--base", metavar="IMAGE@DIGEST", help="by registry: build from this image, named with its sha256 digest"
    )
    build.add_argument("--force", action="store_true", help="build even if the right image is there")
    build.set_defaults(run=_build)

    check = commands.add_parser(
        "check", help="try every kind of sandbox and say what it protects", formatter_class=raw,
        epilog="example:\n  polyturn sandbox check --sandbox docker    (exit code 1 if it cannot run)",
    )  # fmt: skip
    check.add_argument("--sandbox", choices=("docker", "local"), default=None, help="only this kind")
    check.add_argument("--runtime", default=None, metavar="NAME", help=_RUNTIME_HELP)
    check.set_defaults(run=_check)

    run = commands.add_parser(
        "run", help="run a Python file in the sandbox", formatter_class=raw,
        epilog="example:\n  echo 'print(6 * 7)' | polyturn sandbox run --sandbox docker",
    )  # fmt: skip
    run.add_argument("file", nargs="?", default="-", help="a Python file; - is standard input")
    run.add_argument("--sandbox", default=None, metavar="KIND", help="auto (default), docker or local")
    run.add_argument("--runtime", default=None, metavar="NAME", help=_RUNTIME_HELP)
    run.add_argument("--time", type=float, default=5.0, metavar="SECONDS", help="wall clock limit (default: 5)")
    run.add_argument("--memory", type=int, default=512, metavar="MIB", help="memory limit (default: 512)")
    run.set_defaults(run=_run)

    clean = commands.add_parser(
        "clean", help="remove containers whose program is gone", formatter_class=raw,
        epilog="example:\n  polyturn sandbox clean --all    (also those of running programs)",
    )  # fmt: skip
    clean.add_argument("--all", action="store_true", help="also containers of programs that still run")
    clean.set_defaults(run=_clean)


def _fail(error: Exception) -> int:
    print(f"polyturn sandbox: {error}", file=sys.stderr)
    return 1


def _asked(arguments: argparse.Namespace) -> tuple[str | None, dict[str, str]]:
    """The kind of sandbox asked for, and its options."""
    if arguments.runtime is None:
        return arguments.sandbox, {}
    if arguments.sandbox not in (None, "docker"):
        raise ValueError(f"--runtime is Docker's: leave out --sandbox {arguments.sandbox} or say --sandbox docker")
    return "docker", {"runtime": arguments.runtime}


def _build(arguments: argparse.Namespace) -> int:
    from polyturn.sandbox.docker import connect
    from polyturn.sandbox.images import image
    from polyturn.sandbox.images.build import build
    from polyturn.sandbox.sandbox import ImageMissing, SandboxError

    try:
        client = connect()
        if not arguments.force:
            try:
                name = (image.host_name if arguments.method == "host" else image.default_name)(arguments.packages)
                image.require(client, name)
                print(f"{name} is there already (--force builds it again)")
                return 0
            except ImageMissing:
                pass
        options = {"mirror": arguments.mirror, "base": arguments.base}
        build(client, method=arguments.method, packages=arguments.packages, **options)
    except (SandboxError, ValueError) as error:
        _fail(error)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _check(arguments: argparse.Namespace) -> int:
    import warnings
    from dataclasses import asdict

    from polyturn.sandbox import SandboxError, open_sandbox

    worked = 0
    try:
        only, options = _asked(arguments)
    except ValueError as error:
        _fail(error)
        return 2
    for kind in [only] if only else ["docker", "local"]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                start = time.perf_counter()
                with open_sandbox(kind, spares=0, **options) as sandbox:
                    started = time.perf_counter() - start
                    session = sandbox.open()
                    result = session.run("import sympy\nx = sympy.Symbol('x')\nsympy.solve(x**2 - 5*x + 6)")
                    if result.value != "[2, 3]":
                        raise SandboxError(f"the trial program failed: {result.error or result}")
                    capabilities = asdict(sandbox.capabilities)
        except SandboxError as error:
            print(f"{kind}: does not work here: {error}")
            continue
        worked += 1
        print(f"{capabilities.pop('name')}: works (started in {started:.2f} s)")
        warning = capabilities.pop("warning")
        for name, there in capabilities.items():
            print(f"  {'yes' if there else 'NO '}  {name.replace('_', ' ')}")
        if warning:
            print(f"  {warning}")
    return 0 if worked else 1


def _run(arguments: argparse.Namespace) -> int:
    from polyturn.sandbox import Limits, SandboxError, open_sandbox

    try:
        if arguments.file == "-":
            code = sys.stdin.read()
        else:
            with open(arguments.file, encoding="utf-8") as file:
                code = file.read()
    except (OSError, UnicodeDecodeError) as error:
        return _fail(error)
    try:
        kind, options = _asked(arguments)
        with open_sandbox(kind or "auto", **options) as sandbox:
            session = sandbox.open(Limits(wall_s=arguments.time, memory_mb=arguments.memory))
            result = session.run(code)
    except (SandboxError, ValueError) as error:
        _fail(error)
        return 2 if isinstance(error, ValueError) else 1
    print(result.stdout, end="" if result.stdout.endswith("\n") or not result.stdout else "\n")
    if result.value is not None:
        print(result.value)
    for text in (result.stderr, result.error):
        if text:
            print(text.rstrip("\n"), file=sys.stderr)
    if not result.ok:
        print(f"[{result.status}{', output cut' if result.truncated else ''}]", file=sys.stderr)
    return 0 if result.ok else 1


def _clean(arguments: argparse.Namespace) -> int:
    from polyturn.sandbox.docker import connect, remove_orphans
    from polyturn.sandbox.sandbox import SandboxError

    try:
        removed = remove_orphans(connect(), every=arguments.all)
    except SandboxError as error:
        return _fail(error)
    print(f"removed {len(removed)} container{'s' if len(removed) != 1 else ''}" + "".join(f"\n  {n}" for n in removed))
    return 0
