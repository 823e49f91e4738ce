"""`python -m mae_transfer COMMAND` is `mae-transfer COMMAND`. torchrun uses it: `torchrun -m mae_transfer COMMAND`."""

import sys

from mae_transfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
