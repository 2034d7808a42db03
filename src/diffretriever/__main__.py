"""`python -m diffretriever`, the command line where no script is started, as under torchrun."""

from __future__ import annotations

from diffretriever.cli.main import main

if __name__ == "__main__":
    main()
