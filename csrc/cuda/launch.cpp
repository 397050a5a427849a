// Shapes in words, for errors.

#include "launch.h"

namespace d2llm {

std::string shape_of(const Pairs& pairs) {
    const std::string columns = ", F=" + std::to_string(pairs.width);
    if (pairs.given) return "N=" + std::to_string(pairs.passages) + columns;
    return "Nq=" + std::to_string(pairs.queries) + ", Np=" + std::to_string(pairs.passages) + columns;
}

std::string shape_of(const Tokens& tokens, int heads) {
    return "B=" + std::to_string(tokens.sequences) + (tokens.offsets ? ", T=" : ", L=") +
           std::to_string(tokens.length) + ", D=" + std::to_string(tokens.width) + ", H=" + std::to_string(heads);
}

}  // namespace d2llm
