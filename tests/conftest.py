"""For every test: no window, and one thread. The models are tiny: a second thread only waits for the first."""

import matplotlib
import torch

matplotlib.use("Agg")  # not by MPLBACKEND: kernels would inherit it and lose their pictures
torch.set_num_threads(1)
