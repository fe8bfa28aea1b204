"""The command line: one file per verb that parses, calls one function and prints."""


def main() -> None:
    """Run ``moe-gguf``; the entry point of the installed script, which owns its process."""
    from .process import own_process
    from .root import run

    own_process()
    run()
