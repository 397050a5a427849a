// The kernels for this processor.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace d2llm {

// The fastest table that this processor can run; D2LLM_KERNELS_ISA names another of `available`.
const Kernels& kernels();

// Names of the tables that this processor can run, fastest first.
std::vector<std::string> available();

}  // namespace d2llm
