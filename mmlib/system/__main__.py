"""``python -m mmlib.system train|evaluate|chat|serve``."""

from mmlib.system.commands import main

if __name__ == "__main__":
    main()
