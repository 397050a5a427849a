"""``python -m d2llm_kernels.info [ARCH]`` prints versions, backends, why any is missing, and the kernels' tiles."""

import sys

from d2llm_kernels.report import explain

if __name__ == "__main__":
    print(explain(*sys.argv[1:2]))
