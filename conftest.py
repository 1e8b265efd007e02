"""For pytest, before anything is collected: the size of a test run, and what to do where nbval is missing.

nbval runs the notebooks. Without it pytest would stop at the options in pyproject.toml, and nobody could run tests/.
"""

import os
import shutil

os.environ.setdefault("MINAR_PROFILE", "smoke")  # here, because the kernels of the notebooks inherit it
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a GPU Triton's kernels can be interpreted, if it is there


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("nbval"):
        parser.addoption("--nbval-lax", action="store_true", help="ignored: nbval is not installed")
        parser.addoption("--nbval-current-env", action="store_true", help="ignored: nbval is not installed")
        parser.addoption("--nbval-cell-timeout", help="ignored: nbval is not installed")


def pytest_report_header(config):
    if not config.pluginmanager.hasplugin("nbval"):
        return "notebooks: NOT run, because nbval is missing. To run them too: pip install -e '.[course]'"
    return None
