"""For every test: no window, and no more than two threads, so that small models are not slowed by their own crowd."""

import matplotlib
import torch

matplotlib.use("Agg")  # not by MPLBACKEND: kernels would inherit it and lose their pictures
torch.set_num_threads(min(2, torch.get_num_threads()))
