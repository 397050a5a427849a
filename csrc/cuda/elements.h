// Element types of tensors. Half precision is kept as bits: pairs of it fill the 32-bit words that matrix units take.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace d2llm {

struct fp16 {
    uint16_t bits;
};

struct bf16 {
    uint16_t bits;
};

// Calls function(E{}) with the type of the elements.
template <class Function>
void with_element(Element element, Function function) {
    if (element == Element::kFloat32)
        function(float{});
    else if (element == Element::kFloat16)
        function(fp16{});
    else
        function(bf16{});
}

}  // namespace d2llm
