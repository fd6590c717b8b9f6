"""PyTorch modules and the recipes that train them. Does not import the server, the client or the exporter, except to
say how an extra is installed."""

import sys

from models.missing import tell_missing

if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m models...`: a recipe or a study
    sys.excepthook = tell_missing
