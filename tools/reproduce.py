"""Run `mae-transfer suite` from a checkout."""

import sys

from mae_transfer.cli.main import call

if __name__ == "__main__":
    sys.exit(call("suite"))
