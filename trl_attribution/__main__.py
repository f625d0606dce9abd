"""``python -m trl_attribution``."""

from trl_attribution.cli import main

if __name__ == "__main__":
    main()
