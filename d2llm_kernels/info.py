"""``python -m d2llm_kernels.info`` prints versions, backends and why any is missing."""

from d2llm_kernels.report import explain

if __name__ == "__main__":
    print(explain())
