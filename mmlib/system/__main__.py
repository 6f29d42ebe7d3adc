"""``python -m mmlib.system train|evaluate|chat|serve``."""

import sys

from mmlib.system.commands import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:  # it alone needs the web server
        from mmlib.system.serving import main as serve

        sys.exit(serve(sys.argv[2:]))
    main()
