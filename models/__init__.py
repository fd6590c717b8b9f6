"""PyTorch modules and the recipes that train them. Imports nothing of the server, the client or the exporter, except to
say how an extra is installed."""

import sys

from models.missing import tell_missing

if sys.argv[:1] == ["-m"]:  # while Python looks for the module of `python -m models...`, a recipe or a study
    sys.excepthook = tell_missing
