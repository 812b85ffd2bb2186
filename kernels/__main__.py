"""Print which implementation of the kernels serves which device, and why: python -m kernels."""

import kernels

for device in ("cpu", "cuda"):
    print(f"{device}: {kernels.backend(device)}")
