"""The command `artkv`, `python -m artkv`, and what launchers start with `--module artkv`."""

import sys


def main() -> int:
    """Runs a verb and returns the exit code; what needs another system than Linux is told first.

    Here, before anything is imported that only Linux has: to say more of an error artkv needs such a module itself.
    """
    if sys.platform != "linux":
        remedy = {
            "win32": "on Windows install it inside WSL2",
            "cygwin": "on Windows install it inside WSL2",
            "darwin": "on a Mac use a container or another machine",
        }.get(sys.platform, "use another machine")
        print(f"artkv: needs Linux, and this is {sys.platform}; {remedy} (docs/install.md)", file=sys.stderr)
        return 1
    from artkv.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
