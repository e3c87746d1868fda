# SPDX-License-Identifier: Apache-2.0
"""Where the package and its library are; every warning is an error."""
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, os.environ.get("ISGQ_PYTHON", str(HERE.parent.parent / "bindings" / "python")))
