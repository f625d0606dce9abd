"""``python -m trl_attribution.cli``, for launchers that start modules."""

from trl_attribution.cli import main

if __name__ == "__main__":
    main()
