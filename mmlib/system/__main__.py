"""``python -m mmlib.system train|evaluate|chat``."""

from mmlib.system.commands import main

if __name__ == "__main__":
    main()
