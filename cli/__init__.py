"""The command line: one file per verb that parses, calls one function and prints."""


def main() -> None:
    """Run ``moe-gguf``; the entry point of the installed script."""
    from .root import run

    run()
