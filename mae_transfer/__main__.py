"""`python -m mae_transfer COMMAND`: the same as `mae-transfer COMMAND`, and what torchrun starts (`torchrun -m mae_transfer ...`)."""

import sys

from mae_transfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
