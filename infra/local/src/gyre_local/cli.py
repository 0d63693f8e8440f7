"""The `gyre-local` command."""


def main() -> None:
    """Run the command line."""
